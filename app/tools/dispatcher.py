"""Calling tools for one request: checked, bounded in time and size, and told to the user as it happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import structlog
import trio

from app.tools.clip import clean_text, clip
from app.tools.schema import InvalidArguments, ToolContext
from nurseries.errors import CallerError, Fault, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.tools.schema import Tool, ToolDescription
    from app.tools.threads import ToolThreads
    from nurseries.context import UserContext
    from nurseries.events import Emitter
    from nurseries.postgres.scoped import ScopedDatabase

_MAX_NAME: Final = 64
_MAX_ERROR: Final = 1000
_log: Final = structlog.get_logger(__name__)


class UnknownTool(CallerError):
    """There is no such tool, or this agent may not use it."""

    code = "unknown_tool"


class ToolTimeout(Fault):
    """A tool did not answer within its time limit."""

    code = "tool_timeout"


class ToolCrashed(Fault):
    """A tool raised what is not an `Exception`, such as SystemExit: its run ends, the server does not."""

    code = "tool_crashed"


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


class Call(Protocol):
    """What a model asks for. `arguments` is whatever the model wrote, JSON decoded."""

    @property
    def call_id(self) -> str:
        """What its events and its result are known by."""
        ...

    @property
    def tool(self) -> str:
        """The name of the tool."""
        ...

    @property
    def arguments(self) -> object:
        """A JSON object, if the model is good."""
        ...


@attrs.frozen
class ToolResult:
    """How one call ended: a `result` if it is `ok`, else an `error` for the model and the user to read."""

    call_id: str
    tool: str
    ok: bool
    milliseconds: int
    result: Any = None
    error: str = ""

    def payload(self) -> dict[str, Any]:
        """Return the payload of `tool_completed`."""
        outcome = {"result": self.result} if self.ok else {"error": self.error}
        return {
            "call_id": self.call_id,
            "tool": self.tool,
            "ok": self.ok,
            "milliseconds": self.milliseconds,
        } | outcome


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
    ) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._context = ToolContext(context, database)
        self._events = events
        self._threads = threads
        self._limits = limits or ToolLimits()

    def descriptions(self) -> tuple[ToolDescription, ...]:
        """Return what a model is told of the tools that it may use."""
        return tuple(tool.describe() for tool in self._tools.values())

    async def call(self, call_id: str, tool: str, arguments: object) -> ToolResult:
        """Run one tool and say so before and after.

        Whatever the tool does, `tool_completed` follows `tool_executing`, but for one case: when the run
        itself is cancelled, the event that ends the run speaks for its calls too, and nothing delays it.

        Raises:
            ToolCrashed: the tool raised something that is not an `Exception`.
        """
        name = clean_text(tool[:_MAX_NAME])
        shown, refusal = self._check_arguments(arguments)
        await self._events.emit("tool_executing", {"call_id": call_id, "tool": name, "arguments": shown})
        started = trio.current_time()
        result, error, crash = None, "", None
        try:
            if refusal is not None:
                raise refusal  # noqa: TRY301  # all ways for a call to fail end in one place
            result = self._bounded(await self._run(name, shown))
        except BaseException as raised:  # noqa: BLE001  # a tool may raise anything, and fails alone
            if (cancelled := _cancellation(raised)) is not None:
                if raised is not cancelled:
                    _log.warning("tool failed while it was cancelled", tool=name, exc_info=raised)
                raise cancelled from None
            error = _tell(raised)
            if not isinstance(raised, Exception):
                crash = raised
            if not isinstance(raised, _TELLABLE):
                _log.warning("tool failed", tool=name, run_id=self._context.context.run_id, exc_info=raised)
        milliseconds = round((trio.current_time() - started) * 1000)
        outcome = ToolResult(call_id, name, not error, milliseconds, result, error)
        await self._events.emit("tool_completed", outcome.payload())
        if crash is not None:
            raise ToolCrashed(f"the tool {name} raised {type(crash).__name__}") from crash
        return outcome

    async def call_many(self, calls: Sequence[Call]) -> tuple[ToolResult, ...]:
        """Run the calls of one step at the same time, within `ToolLimits.parallel`; results in their order.

        Raises:
            ToolCrashed: see `call`. The other calls are cancelled.
        """
        results: dict[int, ToolResult] = {}
        crashes: list[ToolCrashed] = []
        pending = iter(enumerate(calls))  # shared, so that calls begin in their order

        async def work() -> None:
            try:
                for index, call in pending:
                    results[index] = await self.call(call.call_id, call.tool, call.arguments)
            except ToolCrashed as crash:
                crashes.append(crash)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._limits.parallel, len(calls))):
                nursery.start_soon(work)
        if crashes:
            raise crashes[0]
        return tuple(results[index] for index in range(len(calls)))

    def _check_arguments(self, arguments: object) -> tuple[dict[str, Any], InvalidArguments | None]:
        """Return arguments that can be shown, and why they cannot be used if they cannot."""
        if not isinstance(arguments, Mapping):
            return {}, InvalidArguments(f"arguments: must be a JSON object, not {type(arguments).__name__}")
        try:
            clipped = clip(arguments, self._limits.argument_bytes)
        except TypeError as error:
            return {}, InvalidArguments(f"arguments: {error}")
        if clipped.truncated:
            return {}, InvalidArguments(
                f"arguments: larger than {self._limits.argument_bytes} bytes, or too deep"
            )
        return clipped.value, None

    async def _run(self, name: str, arguments: dict[str, Any]) -> Any:
        tool = self._tools.get(name)
        if tool is None:
            known = ", ".join(self._tools) or "none"
            raise UnknownTool(f"there is no tool {name!r} here; there is: {known}")
        parameters = tool.parse(arguments)
        seconds = self._limits.seconds if tool.seconds is None else tool.seconds
        with trio.move_on_after(seconds):
            if tool.is_async:
                return await tool.function(self._context, parameters)
            context = self._context.context
            return await self._threads.run(context.user_id, tool.function, context, parameters)
        raise ToolTimeout(f"the tool {name} did not answer within {seconds:g} seconds")

    def _bounded(self, value: Any) -> Any:
        """Return the result as JSON, cut to size, and saying so if it was cut."""
        clipped = clip(value, self._limits.result_bytes)
        if not clipped.truncated:
            return clipped.value
        return {"truncated": True, "limit_bytes": self._limits.result_bytes, "result": clipped.value}


_TELLABLE: Final = (CallerError, Unavailable, ToolTimeout)
"""Errors whose message was written for whoever asked. Of others only the type is told: a message may quote anything."""


def _tell(error: BaseException) -> str:
    text = str(error) if isinstance(error, _TELLABLE) else f"the tool failed: {', '.join(_names(error))}"
    return clean_text(text[:_MAX_ERROR]) or type(error).__name__


def _names(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return sorted({name for part in error.exceptions for name in _names(part)})
    return [type(error).__name__]


def _cancellation(error: BaseException) -> BaseException | None:
    """Return the part of `error` that cancels this task from outside, if it is being cancelled.

    A `Cancelled` that a tool kept and raised again belongs to no open scope and would climb to the root;
    it is the tool's crash.
    """
    if trio.current_effective_deadline() > -float("inf"):
        return None
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled)
    return error if isinstance(error, trio.Cancelled) else None
