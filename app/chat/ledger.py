"""What outlives the server of one run, in the journal: its checkpoints, its calls, and what a person said to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from app.chat.approvals import Question
from app.engine.errors import StateTooLarge
from app.store import approvals as approval_store
from app.store import checkpoints as checkpoint_store
from app.wire.codec import encode_json
from nurseries.events import Origin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.chat.journal import Journal
    from app.chat.place import Place
    from app.chat.run import Run
    from app.engine.checkpoints import Checkpoint
    from app.tools.dispatcher import ToolResult
    from app.tools.ledger import Decided
    from nurseries.context import UserContext

STATE_BYTES: Final = 4 * 1024 * 1024
"""How large a run's state may be, its answer so far included; more than models can read."""


@attrs.frozen(kw_only=True, eq=False)
class Past:
    """An earlier life of a run.

    Attributes:
        last: its last checkpoint.
        ended: how its calls ended, by call id.
        begun: its calls that were begun.
    """

    last: Checkpoint | None = None
    ended: Mapping[str, ToolResult] = attrs.field(factory=dict)
    begun: frozenset[str] = frozenset()


@attrs.define(eq=False, kw_only=True)
class RunLedger:
    """Of one run, or of an operation inside it; `app.engine.checkpoints.Checkpoints` for the engine.

    Attributes:
        keeping: whether the run could go on elsewhere.
    """

    keeping: bool
    _run: Run
    _journal: Journal
    _place: Place
    _approval_seconds: float
    _origin: Origin
    _past: Past = attrs.field(factory=Past)
    _step: int = attrs.field(init=False)

    @_step.default
    def _stands(self) -> int:
        return 0 if self._past.last is None else self._past.last.step

    @property
    def last(self) -> Checkpoint | None:
        """The point that this run went on from."""
        return self._past.last

    def child(self, context: UserContext) -> RunLedger:
        """Return that of an operation inside the run: its calls can be approved, and nothing of it is kept."""
        return attrs.evolve(self, keeping=False, origin=Origin.of(context), past=Past())

    # -- checkpoints -------------------------------------------------------------------------------

    async def keep(self, output: str, state: bytes) -> None:
        """Make the next checkpoint; return when it, and all that was said before it, would survive.

        Raises:
            StateTooLarge: it is larger than `STATE_BYTES`.
        """
        if len(output) + len(state) > STATE_BYTES:
            raise StateTooLarge(f"a run may keep {STATE_BYTES} bytes; this one has come to {len(state)}")
        self._step += 1
        self._run.kept = True
        context = self._run.context
        await self._journal.keep(
            self._origin,
            checkpoint_store.Checkpoint(
                context.run_id,
                context.thread_id,
                context.user_id,
                self._step,
                output,
                state,
                encode_json(self._run.meter.usage()).decode(),
            ),
        )

    # -- calls -------------------------------------------------------------------------------------

    def result(self, call_id: str) -> ToolResult | None:
        """Return how the call ended in an earlier life of the run, if it did."""
        return self._past.ended.get(call_id)

    def begun(self, call_id: str) -> bool:
        """Say whether the call was begun in an earlier life of the run."""
        return call_id in self._past.begun

    async def committed(self) -> None:
        """Return when all that was told of the run so far is in the log."""
        await self._journal.committed(self._origin)

    # -- approvals ---------------------------------------------------------------------------------

    async def approval(self, call_id: str, tool: str, arguments: Mapping[str, Any]) -> Decided:
        """Ask the run's user, once in all the run's lives, and return what was decided.

        Meanwhile the run holds no place among those that run.
        """
        questions, key = self._run.questions, (self._origin.run_id, call_id)
        known = questions.get(key)
        if known is not None and known.decided is not None and known.settled.is_set():
            return known.decided  # in an earlier life
        async with self._place.left():
            if key not in questions:
                questions[key] = asked = Question.expiring(self._approval_seconds)
                await self._ask(asked, call_id, tool, arguments)
            asked = questions[key]
            decided = await asked.wait()
            if not asked.settled.is_set():
                payload = {"call_id": call_id, "decision": decided.decision}
                if decided.note is not None:
                    payload["note"] = decided.note
                await self._journal.append(
                    self._origin,
                    "approval_resolved",
                    payload,
                    approval_store.Answered(*key, decided.decision, decided.note),
                )
                await self._journal.committed(self._origin)
                asked.settled.set()
        return decided

    async def _ask(self, asked: Question, call_id: str, tool: str, arguments: Mapping[str, Any]) -> None:
        self._run.kept = True
        context = self._run.context
        await self._journal.append(
            self._origin,
            "approval_requested",
            {"call_id": call_id, "tool": tool, "arguments": arguments, "expires_at": asked.expires_at},
            approval_store.Asked(
                self._origin.run_id,
                call_id,
                context.run_id,
                context.thread_id,
                context.user_id,
                tool,
                encode_json(arguments).decode(),
                asked.expires_at,
            ),
        )
        await self._journal.committed(self._origin)  # or nobody will ever hear of it
