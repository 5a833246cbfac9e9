"""What an agent is, and what one request gives it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import attrs

from app.store.history import HistoryMessage, conversation_before
from app.tools.clip import clean_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import trio

    from app.engine.model import Model
    from app.tools.dispatcher import Dispatcher
    from nurseries.context import UserContext
    from nurseries.events import Emitter
    from nurseries.postgres.scoped import ScopedDatabase

__all__ = ["Agent", "AgentRequest", "Answer", "HistoryMessage", "RunLimits"]


@attrs.frozen(kw_only=True)
class RunLimits:
    """Bounds of one run.

    Attributes:
        steps: how often the model is asked.
        calls_per_step: how many tools it may ask for at once.
        output_characters: how much it may say and think in all.
        history_messages: how many earlier messages it is told.
    """

    steps: int = 10
    calls_per_step: int = 16
    output_characters: int = 100_000
    history_messages: int = 50


@attrs.frozen(kw_only=True, eq=False)
class AgentRequest:
    """All that an agent can reach. Everything in it belongs to one request, and ends with it.

    Attributes:
        context: who asks.
        database: that user's rows and nobody else's.
        events: says what happens, to that user alone.
        nursery: for child tasks; the run ends when they have.
        tools: calls the tools that the agent named.
        model: the language model of this request.
        content: the user's message.
        message_id: the id of the answer that is being written.
        limits: how long the run may go on.
    """

    context: UserContext
    database: ScopedDatabase
    events: Emitter
    nursery: trio.Nursery
    tools: Dispatcher
    model: Model
    content: str
    message_id: str
    limits: RunLimits
    _agent: str
    _on_said: Callable[[str], None] | None = None
    _said: list[str] = attrs.field(factory=list, init=False)

    async def say(self, text: str) -> None:
        """Add to the answer.

        It counts as said before it is sent: the answer that a cancelled run leaves behind is never shorter
        than what its user saw.
        """
        text = clean_text(text)
        if not text:
            return
        self._said.append(text)
        if self._on_said is not None:
            self._on_said(text)
        await self.events.emit("message_delta", {"message_id": self.message_id, "text": text})

    def said(self) -> str:
        """Return the answer so far."""
        return "".join(self._said)

    async def think(self, text: str) -> None:
        """Show some of the thinking, which is no part of the answer."""
        if text:
            await self.events.emit("agent_thinking", {"agent": self._agent, "text": clean_text(text)})

    async def history(self, limit: int) -> tuple[HistoryMessage, ...]:
        """Return the last `limit` messages of this thread before `content`, oldest first."""
        return await conversation_before(
            self.database, thread_id=self.context.thread_id, run_id=self.context.run_id, limit=limit
        )


@attrs.frozen
class Answer:
    """What a run comes to.

    Attributes:
        output: the whole answer, which is also what was said piece by piece.
        usage: what it cost, by name (`input_tokens`, `steps`, ...).
    """

    output: str
    usage: Mapping[str, int] = attrs.field(factory=dict)


class Agent(ABC):
    """Base of all agents. One instance is made for one request, so what it keeps in `self` is that request's.

    Attributes:
        name: what clients ask for.
        description: one sentence for people.
        tools: names of the tools that it may call.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    tools: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    async def run(self, request: AgentRequest) -> Answer:
        """Answer `request.content`, saying the answer as it comes with `request.say`."""
