"""What one request gives to an agent, and what it gets back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import msgspec

from app.engine.checkpoints import Checkpoints, NoCheckpoints
from app.engine.errors import AnswerTooLong, StateUnreadable
from app.engine.events import AgentEvents
from app.store.history import HistoryMessage, conversation_before
from app.tools.clip import clean_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app.engine.children import Children
    from app.engine.model import Model
    from app.tools.dispatcher import Dispatcher
    from nurseries.context import UserContext
    from nurseries.events import Emitter
    from nurseries.nursery import RequestNursery
    from nurseries.postgres.scoped import ScopedDatabase

__all__ = ["AgentRequest", "Answer", "HistoryMessage", "RunLimits"]

T = TypeVar("T")

_DELTA_CHARACTERS: Final = 16_384
"""What goes into one event; more goes into several, so that no event is too large for a socket."""

_MAX_USAGE: Final = 32
_MAX_USAGE_TEXT: Final = 200
_MAX_AMOUNT: Final = 2**53  # what every JSON reader takes for the number it is


@attrs.frozen(kw_only=True)
class RunLimits:
    """Bounds of one run.

    Attributes:
        steps: how often the model is asked.
        tokens: how many the model may use, read and written together, before it is asked no more.
        calls_per_step: how many tools it may ask for at once.
        output_characters: how much it may say and think in all.
        history_messages: how many earlier messages it is told.
        said_characters: how much an agent may say and think in all, model or not.
        sub_agents: how many a run may have, at all depths together.
    """

    steps: int = 10
    tokens: int = 1_000_000
    calls_per_step: int = 16
    output_characters: int = 100_000
    history_messages: int = 50
    said_characters: int = 1024 * 1024
    sub_agents: int = 32


@attrs.frozen(kw_only=True, eq=False)
class AgentRequest:
    """All that an agent can reach. Everything in it belongs to one request, and ends with it.

    Attributes:
        context: who asks.
        database: that user's rows and nobody else's.
        events: tells that user alone of what happens, in events of the agent's own.
        nursery: for child tasks; the run ends when they have.
        tools: calls the tools that the agent named.
        model: the language model of this request.
        content: the user's message.
        message_id: the id of the answer that is being written.
        limits: how long the run may go on.
    """

    context: UserContext
    database: ScopedDatabase
    nursery: RequestNursery
    tools: Dispatcher
    model: Model
    content: str
    message_id: str
    limits: RunLimits
    _emitter: Emitter
    events: AgentEvents = attrs.field(init=False)
    _children: Children
    _agent: str
    _on_said: Callable[[str], None] | None = None
    _checkpoints: Checkpoints = attrs.field(factory=NoCheckpoints)
    _room: _Room = attrs.field(init=False)
    _said: list[str] = attrs.field(init=False)

    @_said.default
    def _stands(self) -> list[str]:
        last = self._checkpoints.past.last
        return [last.output] if last is not None and last.output else []

    @events.default
    def _own(self) -> AgentEvents:
        return AgentEvents(self._emitter)

    @_room.default
    def _whole(self) -> _Room:
        return _Room(self.limits.said_characters)

    async def say(self, text: str) -> None:
        """Add to the answer.

        It counts as said before it is sent: the answer that a cancelled run leaves behind is never shorter
        than what its user saw.

        Raises:
            AnswerTooLong: the run has said more than `RunLimits.said_characters`.
        """
        text = clean_text(text)
        for start in range(0, len(text), _DELTA_CHARACTERS):
            piece = text[start : start + _DELTA_CHARACTERS]
            self._room.take(piece)
            self._said.append(piece)
            if self._on_said is not None:
                self._on_said(piece)
            await self._emitter.emit("message_delta", {"message_id": self.message_id, "text": piece})

    def said(self) -> str:
        """Return the answer so far."""
        return "".join(self._said)

    async def think(self, text: str) -> None:
        """Show some of the thinking, which is no part of the answer.

        Raises:
            AnswerTooLong: as for `say`.
        """
        text = clean_text(text)
        for start in range(0, len(text), _DELTA_CHARACTERS):
            piece = text[start : start + _DELTA_CHARACTERS]
            self._room.take(piece)
            await self._emitter.emit("agent_thinking", {"agent": self._agent, "text": piece})

    @property
    def agents(self) -> dict[str, str]:
        """The agents that this one may delegate to, by name, with their descriptions."""
        return self._children.descriptions()

    @property
    def delegated(self) -> dict[str, int]:
        """What the sub-agents of this request used so far, and how many there were (`sub_agents`)."""
        return dict(self._children.usage)

    async def delegate(
        self, agent: str, content: str, *, seconds: float | None = None, call_id: str | None = None
    ) -> Answer:
        """Have another agent answer `content`, in a request inside this one, and return its answer.

        It has this request's user and thread, and its own of all else: database, events, tools, model. Several
        may run at the same time, in tasks of a nursery. What it says is shown as its own, and is no part of
        this agent's answer.

        Args:
            agent: a name that this agent declares in its `agents`.
            content: what it is asked.
            seconds: how long it may take.
            call_id: what a resumable agent knows it by. After the loss of the server one that had ended returns
                the same answer; one that was cut off goes on if it is resumable, and else begins anew.

        Raises:
            AgentFailed: it failed, or took too long; nothing else that it raises passes.
            UndeclaredAgent: this agent does not declare it.
            TooManyAgents, DepthExceeded: the run has as many sub-agents, or as deep ones, as it may have.
        """
        return await self._children.delegate(agent, clean_text(content), seconds=seconds, call_id=call_id)

    def resumed(self, kind: type[T]) -> T | None:
        """Return what the last checkpoint kept, if this run goes on after its server was lost.

        Raises:
            StateUnreadable: it is not of this `kind`: the agent has changed meanwhile.
        """
        last = self._checkpoints.past.last
        if last is None:
            return None
        try:
            return msgspec.json.decode(last.state, type=kind)
        except msgspec.MsgspecError as error:
            raise StateUnreadable(f"the agent {self._agent} has changed since it kept its state") from error

    async def checkpoint(self, state: object) -> None:
        """Keep `state`, and all that was said so far, as the point from which a lost run goes on.

        It does nothing for an agent that is not `resumable`. `state` is anything that msgspec writes as JSON.

        Raises:
            StateTooLarge: it is larger than a state may be.
        """
        if self._checkpoints.keeping:
            await self._checkpoints.keep(self.said(), msgspec.json.encode(state))

    async def history(self, limit: int) -> tuple[HistoryMessage, ...]:
        """Return the last `limit` messages of this thread before `content`, oldest first."""
        return await conversation_before(
            self.database, thread_id=self.context.thread_id, run_id=self.context.run_id, limit=limit
        )


@attrs.define(eq=False)
class _Room:
    """How much may still be said."""

    left: int

    def take(self, piece: str) -> None:
        self.left -= len(piece)
        if self.left < 0:
            raise AnswerTooLong("the run said more than a run may say")


def _text(value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"output: must be text, not {type(value).__name__}")
    return clean_text(value)


def _usage(value: Mapping[str, int | str]) -> dict[str, int | str]:
    """Return a copy that can be written down, whatever an agent made of it."""
    usage = {}
    for name, amount in value.items():
        if not isinstance(name, str) or not isinstance(amount, int | str):
            raise TypeError(f"usage: numbers and text by name, not {name!r}: {type(amount).__name__}")
        if len(name) > _MAX_USAGE_TEXT or not _fits(amount):
            raise ValueError(f"usage: {name[:_MAX_USAGE_TEXT]!r}, or what it is said to be, is too large")
        usage[clean_text(name)] = clean_text(amount) if isinstance(amount, str) else amount
    if len(usage) > _MAX_USAGE:
        raise ValueError(f"usage: more than {_MAX_USAGE} entries")
    return usage


def _fits(amount: int | str) -> bool:
    return len(amount) <= _MAX_USAGE_TEXT if isinstance(amount, str) else abs(amount) <= _MAX_AMOUNT


@attrs.frozen
class Answer:
    """What a run comes to.

    Attributes:
        output: the whole answer, which is also what was said piece by piece.
        usage: what it cost, by name (`input_tokens`, `steps`, ...), and the name of the `model`.
    """

    output: str = attrs.field(converter=_text)
    usage: Mapping[str, int | str] = attrs.field(factory=dict, converter=_usage)
