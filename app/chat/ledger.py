"""What outlives the server of one run, in the journal: its checkpoints, its calls, and what a person said to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from app.chat.approvals import Question
from app.engine.checkpoints import Past
from app.engine.errors import StateTooLarge
from app.store import approvals as approval_store
from app.store import checkpoints as checkpoint_store
from app.tools.ledger import Decided
from app.wire.codec import encode_json
from nurseries.events import Origin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.chat.journal import Journal
    from app.chat.place import Place
    from app.chat.run import Run
    from app.tools.calls import ToolResult
    from nurseries.context import UserContext
    from nurseries.events import Emitter

STATE_BYTES: Final = 4 * 1024 * 1024
"""How large a run's state may be, its answer so far included; more than models can read."""


@attrs.define(eq=False, kw_only=True)
class RunLedger:
    """Of one run, or of an operation inside it; `app.engine.checkpoints.Checkpoints` for the engine.

    Attributes:
        keeping: whether it could go on elsewhere.
        past: what earlier lives have left of it.
    """

    keeping: bool
    past: Past = attrs.field(factory=Past)
    _run: Run
    _journal: Journal
    _place: Place
    _approval_seconds: float
    _origin: Origin
    _doubtful: frozenset[str] = frozenset()
    """Tools that an operation called which begins anew now: under what ids it will call them, nobody knows."""
    _step: int = attrs.field(init=False)

    @_step.default
    def _stands(self) -> int:
        return 0 if self.past.last is None else self.past.last.step

    async def child(self, context: UserContext, call_id: str | None, *, resumable: bool) -> RunLedger:
        """Return that of an operation inside the run; see `app.engine.checkpoints.Checkpoints`.

        One that begins anew has nobody who waits for what its user was asked before. A tool that may not be
        repeated is not called in it, if it was before.
        """
        keeping = self.keeping and call_id is not None
        earlier = self.past.children.get(call_id) if keeping and call_id is not None else None
        past, doubtful = earlier or Past(run_id=context.run_id), self._doubtful
        if earlier is not None and not resumable:
            past = Past(run_id=context.run_id, ended=earlier.ended, begun=earlier.begun)
            doubtful |= frozenset(earlier.tools())
            await self._void(earlier.run_id)
        return attrs.evolve(
            self, keeping=keeping and resumable, origin=Origin.of(context), past=past, doubtful=doubtful
        )

    async def _void(self, run_id: str) -> None:
        """Close the questions of an operation that was cut off, and of those inside it."""
        for (asked_by, call_id), question in tuple(self._run.questions.items()):
            if not question.settled.is_set() and f"{asked_by}_".startswith(f"{run_id}_"):
                question.stand(Decided("void"))
                await void(self._journal, self._origin, asked_by, call_id)
        if not self._run.is_asking:
            await self._place.take()  # it was left to wait for these

    # -- checkpoints -------------------------------------------------------------------------------

    async def keep(self, output: str, state: bytes) -> None:
        """Make the next checkpoint; return when it, and all that was said before it, would survive.

        Raises:
            StateTooLarge: it is larger than `STATE_BYTES`.
        """
        sizes = self._run.kept_sizes
        sizes[self._origin.run_id] = len(output) + len(state)
        if sum(sizes.values()) > STATE_BYTES:
            raise StateTooLarge(
                f"a run may keep {STATE_BYTES} bytes; this one has come to {sum(sizes.values())}"
            )
        await self._journal.keep(self._origin, self._next(output, state))

    def _next(self, output: str, state: bytes) -> checkpoint_store.Checkpoint:
        self._step += 1
        self._run.kept = True
        context = self._run.context
        return checkpoint_store.Checkpoint(
            self._origin.run_id,
            context.run_id,
            context.thread_id,
            context.user_id,
            self._step,
            output,
            state,
            encode_json(self._run.meter.usage()).decode(),
        )

    async def end(self, events: Emitter, event_type: str, payload: Mapping[str, Any]) -> None:
        """Tell how an operation ended; with that its state goes, and what models have cost until then stays."""
        if self.keeping:
            self._run.kept_sizes.pop(self._origin.run_id, None)
            await self._journal.append(self._origin, event_type, payload, self._next("", b""))
        else:
            await events.emit(event_type, payload)

    # -- calls -------------------------------------------------------------------------------------

    def result(self, call_id: str) -> ToolResult | None:
        """Return how the call ended in an earlier life of the run, if it did."""
        return self.past.ended.get(call_id)

    def begun(self, call_id: str, tool: str) -> bool:
        """Say whether the call was, or may have been, begun in an earlier life of the run."""
        return call_id in self.past.begun or tool in self._doubtful

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


async def void(journal: Journal, origin: Origin, asked_by: str, call_id: str) -> None:
    """Tell a run's user that nobody needs the decision any more."""
    await journal.append(
        Origin.of_ids(origin.user_id, origin.thread_id, asked_by),
        "approval_resolved",
        {"call_id": call_id, "decision": "void"},
        approval_store.Answered(asked_by, call_id, "void", None),
    )
