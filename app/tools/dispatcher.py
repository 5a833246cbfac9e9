"""Calling tools for one request: checked, bounded in time and size, and told to the user as it happens."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs
import structlog
import trio

from app.tools.calls import ToolResult
from app.tools.clip import clean_text, clip
from app.tools.failures import TELLABLE, ToolCrashed, ToolTimeout, UnknownTool, cancellation_of, tell
from app.tools.ledger import Forgetful, NobodyToAsk
from app.tools.schema import CallContext, InvalidArguments, ToolContext
from nurseries.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from app.tools.calls import Call
    from app.tools.ledger import Ledger
    from app.tools.schema import Tool, ToolDescription
    from app.tools.threads import ToolThreads
    from nurseries.context import UserContext
    from nurseries.events import Emitter
    from nurseries.postgres.scoped import ScopedDatabase

_MAX_NAME: Final = 64
_log: Final = structlog.get_logger(__name__)


@attrs.frozen(kw_only=True)
class ToolLimits:
    """Bounds of one request's tool calls.

    Attributes:
        seconds: how long one call may take, unless its tool says otherwise.
        argument_bytes: how large the arguments of one call may be.
        result_bytes: how much of one result is kept.
        parallel: how many calls of one step run at once.
    """

    seconds: float = 30.0
    argument_bytes: int = 64 * 1024
    result_bytes: int = 64 * 1024
    parallel: int = 4


@attrs.frozen
class _Prepared:
    """One call, looked at but not made.

    Attributes:
        shown: the arguments, fit to be shown.
        tool, parameters: what to call with what, unless there is a `refusal`.
    """

    call_id: str
    name: str
    shown: dict[str, Any]
    tool: Tool | None = None
    parameters: Any = None
    refusal: CallerError | None = None

    def failed(self, error: str) -> ToolResult:
        """Return how a call ended that was not made."""
        return ToolResult(self.call_id, self.name, ok=False, milliseconds=0, error=error)


class Dispatcher:
    """The tools of one request. It is made from that request's context and dies with it."""

    def __init__(  # noqa: PLR0913  # what a request is made of, each named at the call
        self,
        tools: Sequence[Tool],
        *,
        context: UserContext,
        database: ScopedDatabase,
        events: Emitter,
        threads: ToolThreads,
        limits: ToolLimits | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._context = context
        self._database = database
        self._events = events
        self._threads = threads
        self._limits = limits or ToolLimits()
        self._ledger = ledger or Forgetful()
        self._slots = trio.CapacityLimiter(self._limits.parallel)

    def add(self, tool: Tool) -> None:
        """Add a tool for this request alone; its function may hold what is the request's.

        Raises:
            ValueError: the name is taken.
        """
        if tool.name in self._tools:
            raise ValueError(f"tool {tool.name!r} is there already")
        self._tools[tool.name] = tool

    def descriptions(self) -> tuple[ToolDescription, ...]:
        """Return what a model is told of the tools that it may use."""
        return tuple(tool.describe() for tool in self._tools.values())

    async def call(self, call_id: str, tool: str, arguments: object) -> ToolResult:
        """Run one tool and say so before and after, once its user has approved where that is needed.

        Whatever the tool does, `tool_completed` follows, but for one case: when the run itself is cancelled,
        the event that ends the run speaks for its calls too, and nothing delays it. A call that is known to
        have ended, in an earlier life of the run, is not made again.

        Raises:
            ToolCrashed: the tool raised something that is not an `Exception`.
        """
        ended = self._ledger.result(call_id)
        if ended is not None:
            await trio.lowlevel.checkpoint()
            return ended
        call = self._prepare(call_id, tool, arguments)
        refused = await self._refused(call)
        if refused is not None:
            await self._events.emit("tool_completed", refused.payload())
            return refused
        async with self._slots:
            return await self._make(call)

    async def call_many(self, calls: Sequence[Call]) -> tuple[ToolResult, ...]:
        """Run the calls of one step at the same time, within `ToolLimits.parallel`; results in their order.

        Those that need an approval are asked for all at once, and hold up none of the others.

        Raises:
            ToolCrashed: see `call`. The other calls are cancelled.
        """
        if len(calls) == 1:  # as most steps have, and a nursery costs as much as the call
            return (await self.call(calls[0].call_id, calls[0].tool, calls[0].arguments),)
        results: dict[int, ToolResult] = {}
        crashes: list[ToolCrashed] = []
        asking = [each for each in enumerate(calls) if self._asks(each[1].tool)]
        waiting = [each for each in enumerate(calls) if not self._asks(each[1].tool)]
        # One queue for several tasks, so that calls begin in their order.
        queues = [iter(waiting)] * min(self._limits.parallel, len(waiting))
        queues += [iter([each]) for each in asking]

        async def work(queue: Iterator[tuple[int, Call]]) -> None:
            try:
                for index, call in queue:
                    results[index] = await self.call(call.call_id, call.tool, call.arguments)
            except ToolCrashed as crash:
                crashes.append(crash)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for queue in queues:
                nursery.start_soon(work, queue)
        if crashes:
            raise crashes[0]
        return tuple(results[index] for index in range(len(calls)))

    # -- before the call ---------------------------------------------------------------------------

    def _prepare(self, call_id: str, name: str, arguments: object) -> _Prepared:
        name = clean_text(name[:_MAX_NAME])
        shown: dict[str, Any] = {}
        try:
            shown = self._check_arguments(arguments)
            tool = self._tools.get(name)
            if tool is None:
                known = ", ".join(self._tools) or "none"
                raise UnknownTool(f"there is no tool {name!r} here; there is: {known}")
            return _Prepared(call_id, name, shown, tool, tool.parse(shown))
        except CallerError as refusal:
            return _Prepared(call_id, name, shown, refusal=refusal)

    def _check_arguments(self, arguments: object) -> dict[str, Any]:
        """Return arguments that can be shown."""
        if not isinstance(arguments, Mapping):
            raise InvalidArguments(f"arguments: must be a JSON object, not {type(arguments).__name__}")
        try:
            clipped = clip(arguments, self._limits.argument_bytes)
        except TypeError as error:
            raise InvalidArguments(f"arguments: {error}") from None
        if clipped.truncated:
            raise InvalidArguments(f"arguments: larger than {self._limits.argument_bytes} bytes, or too deep")
        value: dict[str, Any] = clipped.value
        return value

    def _asks(self, name: str) -> bool:
        tool = self._tools.get(name)
        return tool is not None and tool.approval

    async def _refused(self, call: _Prepared) -> ToolResult | None:
        """Return the end of a call that may not be made; wait for a person where one has to say so."""
        if call.tool is None:
            return None  # `_make` tells of it as of any call
        if call.tool.approval:
            try:
                decided = await self._ledger.approval(call.call_id, call.name, call.shown)
            except NobodyToAsk as error:
                return call.failed(str(error))
            if decided.decision != "approve":
                return call.failed(
                    _REFUSALS[decided.decision] + (f": {decided.note}" if decided.note else "")
                )
        if not call.tool.repeatable and self._ledger.begun(call.call_id, call.name):
            return call.failed("outcome unknown: the server was lost while this call was being made")
        return None

    # -- the call ----------------------------------------------------------------------------------

    async def _make(self, call: _Prepared) -> ToolResult:
        name = call.name
        await self._events.emit(
            "tool_executing", {"call_id": call.call_id, "tool": name, "arguments": call.shown}
        )
        if call.tool is not None and (call.tool.approval or not call.tool.repeatable):
            await self._ledger.committed()  # what must not happen twice must be known to have begun
        started = trio.current_time()
        result, error, crash = None, "", None
        try:
            result = self._bounded(await self._run(call))
        except BaseException as raised:  # noqa: BLE001  # a tool may raise anything, and fails alone
            if (cancelled := cancellation_of(raised)) is not None:
                if raised is not cancelled:
                    _log.warning("tool failed while it was cancelled", tool=name, exc_info=raised)
                raise cancelled from None
            error = tell(raised)
            if not isinstance(raised, Exception):
                crash = raised
            if not isinstance(raised, TELLABLE):
                _log.warning("tool failed", tool=name, run_id=self._context.run_id, exc_info=raised)
        milliseconds = round((trio.current_time() - started) * 1000)
        outcome = ToolResult(call.call_id, name, not error, milliseconds, result, error)
        await self._events.emit("tool_completed", outcome.payload())
        if crash is not None:
            raise ToolCrashed(f"the tool {name} raised {type(crash).__name__}") from crash
        return outcome

    async def _run(self, call: _Prepared) -> Any:
        tool = call.tool
        if tool is None:
            assert call.refusal is not None
            raise call.refusal
        seconds = self._limits.seconds if tool.seconds is None else tool.seconds
        with trio.move_on_after(seconds):
            if tool.is_async:
                context = ToolContext(self._context, self._database, call.call_id)
                return await tool.function(context, call.parameters)
            asked = CallContext(self._context, call.call_id)
            return await self._threads.run(self._context.user_id, tool.function, asked, call.parameters)
        raise ToolTimeout(f"the tool {call.name} did not answer within {seconds:g} seconds")

    def _bounded(self, value: Any) -> Any:
        """Return the result as JSON, cut to size, and saying so if it was cut."""
        clipped = clip(value, self._limits.result_bytes)
        if not clipped.truncated:
            return clipped.value
        return {"truncated": True, "limit_bytes": self._limits.result_bytes, "result": clipped.value}


_REFUSALS: Final = MappingProxyType(
    {
        "deny": "not approved: the user said no",
        "expired": "not approved: nobody decided in time",
        "void": "not approved: it was not asked for any more",
    }
)
