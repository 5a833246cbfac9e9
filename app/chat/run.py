"""One run: what was asked, how it stands, and how it ends. The protocol's words for each stand here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID, uuid5

import attrs
import msgspec
import trio

from app.engine.models.meter import Meter
from app.engine.request import Answer
from app.store.journal import NewMessage, RunChange
from nurseries.context import UserContext
from nurseries.events import Origin
from nurseries.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.chat.approvals import Question
    from app.chat.place import Place
    from app.store.journal import Unfinished
    from app.wire.messages import OnConflict, OnDisconnect
    from nurseries.request import Failure

Status = Literal["queued", "running", "completed", "failed", "cancelled", "interrupted"]
MAX_KEPT: Final = 1_000_000
"""Characters of an unfinished answer that are kept; what goes beyond was sent and is in the event log."""


@attrs.frozen(kw_only=True)
class Ask:
    """What a user asks for.

    Attributes:
        key: the idempotency key, if there is one.
        client_id: a socket's name for the message, echoed in `run_queued`.
    """

    thread_id: str
    content: str
    agent: str
    on_conflict: OnConflict = "enqueue"
    on_disconnect: OnDisconnect = "continue"
    key: str | None = None
    client_id: str | None = None


def answer_id(run_id: str) -> str:
    """Return the id of a run's answer: the same in every life of the run."""
    return str(uuid5(UUID(run_id), "answer"))


@attrs.define(eq=False, kw_only=True)
class Run:
    """One run, from the moment it is durable until its last event is in the log.

    Attributes:
        context: of the request that it runs in.
        message_id: of the answer.
        scope: cancels it, also while it is queued.
        turn: set when no earlier run of the thread is left.
        done: set when everything it owned is released and its end is in the log.
        replaces: the run whose messages go before this one starts.
        status, output, failure: as the protocol shows them.
        resumable: whether another server could go on with it once it has started.
        lost: how another server left it, for a run that was not accepted by this one.
        kept: whether the database holds what goes with the run's end.
        kept_sizes: how large the states are that it keeps, its own and those of operations inside it, by run id.
        questions: what a person is asked in it, by the run id of the question's events and the call id.
        place: where it runs, once it does.
        meter: which models have answered in it, and what they cost.
    """

    context: UserContext
    ask: Ask
    message_id: str = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    turn: trio.Event = attrs.field(factory=trio.Event)
    done: trio.Event = attrs.field(factory=trio.Event)
    position: int = 0
    replaces: str | None = None
    status: Status = "queued"
    started: bool = False
    output: str | None = None
    failure: Failure | None = None
    resumable: bool = False
    lost: Unfinished | None = None
    kept: bool = False
    kept_sizes: dict[str, int] = attrs.field(factory=dict)
    questions: dict[tuple[str, str], Question] = attrs.field(factory=dict)
    place: Place | None = None
    meter: Meter = attrs.field(factory=Meter)
    _reason: str | None = None
    _discard: bool = False
    _suspended: bool = False
    _said: list[str] = attrs.field(factory=list)
    _said_length: int = 0

    @message_id.default
    def _answer_id(self) -> str:
        return answer_id(self.context.run_id)

    @property
    def run_id(self) -> str:
        """The run's id, which the context carries."""
        return self.context.run_id

    @property
    def task_name(self) -> str:
        """What its task is called, by which an inspection finds it."""
        return f"run {self.run_id}"

    @property
    def goes_ahead(self) -> bool:
        """Whether it cancels the active run of its thread, and goes before those that wait."""
        return self.ask.on_conflict in {"interrupt", "rollback"}

    def hear(self, text: str) -> None:
        """Remember what was said, for a run that does not get to its end."""
        if self._said_length < MAX_KEPT:
            self._said.append(text)
            self._said_length += len(text)

    def cancel(self, reason: str, *, discard: bool = False) -> None:
        """Cancel it; the first reason counts. `discard` drops what it said instead of keeping it."""
        self._reason = self._reason or reason
        self._discard = self._discard or discard
        self.scope.cancel()

    @property
    def survives(self) -> bool:
        """Whether the next server can go on with it: nothing of it is lost with this one."""
        free = self.ask.on_disconnect == "continue" and self._reason is None
        return free and (self.resumable or not self.started)

    @property
    def is_asking(self) -> bool:
        """Whether somebody's decision is still to come, or to be taken."""
        return any(not question.settled.is_set() for question in self.questions.values())

    @property
    def waits_for_a_person(self) -> bool:
        """Whether it does nothing but wait for somebody's decision, and could do so in the next server."""
        waits = self.place is not None and self.place.is_left
        return waits and self.survives and not self._suspended

    def suspend(self) -> None:
        """End it here, for the next server to go on with."""
        self._suspended = True
        self.scope.cancel()

    @property
    def suspended(self) -> bool:
        """Whether it was suspended, and not cancelled."""
        return self._suspended and self._reason is None

    def queued_payload(self) -> dict[str, Any]:
        """Return what `run_queued` says."""
        payload: dict[str, Any] = {
            "content": self.ask.content,
            "agent": self.ask.agent,
            "position": self.position,
        }
        if self.ask.client_id is not None:
            payload["client_id"] = self.ask.client_id
        return payload

    def started_payload(self) -> dict[str, Any]:
        """Return what `agent_started` says."""
        return {
            "agent": self.ask.agent,
            "request_id": self.context.request_id,
            "depth": self.context.operation_depth,
        }

    def started_change(self, since_seq: int) -> RunChange:
        """Return what is stored with `agent_started`; `since_seq` is a number of the thread before it."""
        return RunChange(self.run_id, "running", started=True, since_seq=since_seq)

    def resumed_payload(self, step: int) -> dict[str, Any]:
        """Return what `run_resumed` says: what stands of the answer, after so many steps."""
        return {
            "step": step,
            "output": "".join(self._said),
            "message_id": self.message_id,
            "request_id": self.context.request_id,
        }

    def resumed_change(self) -> RunChange:
        """Return what is stored with `run_resumed`."""
        return RunChange(self.run_id, "running", started=True, resumes=self._resumes + 1)

    def suspended_change(self) -> RunChange | None:
        """Return what is stored with `run_suspended`: a stop in peace is none of those that are counted."""
        if not self.started:
            return None
        return RunChange(self.run_id, "running", started=True, resumes=self._resumes)

    @property
    def _resumes(self) -> int:
        return 0 if self.lost is None else self.lost.resumes

    def end(self, result: Answer | Failure | None) -> Ending:
        """Set the final state and return what goes into the log; None stands for a cancellation."""
        if isinstance(result, Answer):
            return self._complete(result)
        if result is None:
            self.status = "cancelled"
            # Without a reason nobody asked for it: the owner ended, which is the socket's nursery.
            event, payload = "run_cancelled", {"reason": self._reason or "disconnected"}
        else:
            self.status, self.failure = "failed", result
            event, payload = "run_failed", {"code": result.code, "message": result.message}
        self.output = "".join(self._said) or None
        if self._discard:
            self.output = None
        message = self._message(self.output, partial=True) if self.output else None
        return Ending(event, payload, self._change(), message)

    def _complete(self, answer: Answer) -> Ending:
        self.status, self.output = "completed", answer.output
        payload = {
            "agent": self.ask.agent,
            "depth": self.context.operation_depth,
            "message_id": self.message_id,
            "output": answer.output,
            "usage": dict(answer.usage),
        }
        message = self._message(answer.output, partial=False)
        return Ending("agent_completed", payload, self._change(answer.usage), message)

    def _change(self, usage: Mapping[str, int | str] | None = None) -> RunChange:
        """Return what is stored with the end. What models have cost is stored however the run ends."""
        failure = self.failure
        models = self.meter.usage()
        cost: dict[str, Any] = {**(usage or {}), **({"models": models} if models else {})}
        return RunChange(
            self.run_id,
            self.status,
            started=self.started,
            output=self.output,
            error_code=failure.code if failure else None,
            error_message=failure.message if failure else None,
            usage=msgspec.json.encode(cost).decode() if cost else None,
            kept=self.kept,
        )

    def _message(self, content: str, *, partial: bool) -> NewMessage:
        context = self.context
        return NewMessage(
            self.message_id, context.thread_id, context.user_id, self.run_id, "assistant", content, partial
        )


@attrs.frozen
class Ending:
    """The last event of a run, and what is committed with it."""

    event_type: str
    payload: dict[str, Any]
    change: RunChange
    message: NewMessage | None

    @property
    def records(self) -> tuple[NewMessage | RunChange, ...]:
        """What is committed with the event."""
        return (self.change,) if self.message is None else (self.change, self.message)


def new_run(caller: UserContext, ask: Ask, *, resumable: bool) -> Run:
    """Return a run of the caller's user, with a context of its own."""
    context = UserContext(
        user_id=caller.user_id,
        thread_id=ask.thread_id,
        run_id=new_id(),
        websocket_client_id=caller.websocket_client_id,
    )
    return Run(context=context, ask=ask, resumable=resumable)


def lost_run(lost: Unfinished, *, resumable: bool) -> Run:
    """Return a run that another server left; its message is read when its turn comes."""
    context = UserContext(user_id=lost.user_id, thread_id=lost.thread_id, run_id=lost.run_id)
    ask = Ask(
        thread_id=lost.thread_id,
        content="",
        agent=lost.agent,
        on_conflict=lost.on_conflict,
        on_disconnect=lost.on_disconnect,
    )
    run = Run(context=context, ask=ask, resumable=resumable, lost=lost, kept=True)
    if lost.status == "running":
        run.started, run.status = True, "running"
    run.replaces = lost.replaces if lost.on_conflict == "rollback" else None
    return run


def origin_of(run: Run) -> Origin:
    """Return whose events the run's are."""
    return Origin.of(run.context)
