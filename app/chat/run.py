"""One run: what was asked, how it stands, and how it ends. The protocol's words for each stand here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import msgspec
import trio

from app.engine.agent import Answer
from app.store.journal import NewMessage, RunChange
from nurseries.context import UserContext
from nurseries.events import Origin
from nurseries.ids import new_id

if TYPE_CHECKING:
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
    """

    context: UserContext
    ask: Ask
    message_id: str = attrs.field(factory=new_id)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    turn: trio.Event = attrs.field(factory=trio.Event)
    done: trio.Event = attrs.field(factory=trio.Event)
    position: int = 0
    replaces: str | None = None
    status: Status = "queued"
    started: bool = False
    output: str | None = None
    failure: Failure | None = None
    _reason: str | None = None
    _discard: bool = False
    _said: list[str] = attrs.field(factory=list)
    _said_length: int = 0

    @property
    def run_id(self) -> str:
        """The run's id, which the context carries."""
        return self.context.run_id

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
        change = attrs.evolve(self._change(), usage=msgspec.json.encode(dict(answer.usage)).decode())
        return Ending("agent_completed", payload, change, self._message(answer.output, partial=False))

    def _change(self) -> RunChange:
        failure = self.failure
        return RunChange(
            self.run_id,
            self.status,
            started=self.started,
            output=self.output,
            error_code=failure.code if failure else None,
            error_message=failure.message if failure else None,
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


def new_run(user_id: str, ask: Ask) -> Run:
    """Return a run of `user_id`, with a context of its own."""
    return Run(context=UserContext(user_id=user_id, thread_id=ask.thread_id, run_id=new_id()), ask=ask)


def origin_of(run: Run) -> Origin:
    """Return whose events the run's are."""
    return Origin.of(run.context)
