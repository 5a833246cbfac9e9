"""Agents of the scenarios. The server finds them by the name of this module, as it would find a user's own."""

from collections.abc import Callable
from typing import Any

import trio

from app.agents import Agent, AgentRequest


class Meeting:
    """A moment at which a number of runs are all in the middle of their work.

    Attributes:
        met: what each of them brought.
    """

    def __init__(self, size: int, then: Callable[[], None] = lambda: None) -> None:
        self._size = size
        self._then = then
        self._complete = trio.Event()
        self.met: list[Any] = []

    async def join(self, brought: Any) -> None:
        """Wait until all have come."""
        self.met.append(brought)
        if len(self.met) == self._size:
            self._then()
            self._complete.set()
        await self.complete()

    async def complete(self) -> None:
        """Wait until all have come, without being one of them."""
        await self._complete.wait()


meeting = Meeting(1)
"""Replaced by each test that has runs meet."""


class Notebook(Agent):
    """Keeps notes in itself while others do the same, and answers with them."""

    name = "notebook"
    description = "Repeats what it noted."

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def run(self, request: AgentRequest) -> str:
        for word in request.content.split():
            self.notes.append(word)
            await request.think(word)
        await meeting.join(self)
        await request.say(" ".join(self.notes))
        return " ".join(self.notes)


class Gossip(Agent):
    """Says everything that it can read, in small pieces and between queries."""

    name = "gossip"
    description = "Says all it knows."

    async def run(self, request: AgentRequest) -> str:
        for _ in range(2):
            # Of the log only its beginning: it holds what was said of it, and would grow without end.
            for table, column in (
                ("messages", "left(content, 300)"),
                ("events", "left(lines, 300)"),
                ("threads", "title"),
            ):
                for (text,) in await request.database.fetch(f"SELECT {column} FROM {table} LIMIT 20"):
                    await request.say(f"{text}\n")
        return request.said()[-1000:]


class Blurting(Agent):
    """Fails with the user's own words in its error."""

    name = "blurting"
    description = "Fails."

    async def run(self, request: AgentRequest) -> str:
        raise ZeroDivisionError(request.content)


class _Member(Agent):
    """Brings all that its run was given to the meeting."""

    async def run(self, request: AgentRequest) -> str:
        await meeting.join(self.brought(request))
        return "met"

    def brought(self, request: AgentRequest) -> dict[str, Any]:
        parts = ("context", "database", "events", "tools", "model", "nursery")
        return {"agent": self, "request": request} | {part: getattr(request, part) for part in parts}


class Painter(_Member):
    """One of three kinds."""

    name = "painter"
    description = "Paints."
    tools = ("clock",)


class Sailor(_Member):
    """One of three kinds."""

    name = "sailor"
    description = "Sails."
    tools = ("clock", "calculator")


class Tailor(_Member):
    """One of three kinds."""

    name = "tailor"
    description = "Sews."


class Leader(_Member):
    """Delegates to two others at once, and comes to the meeting too."""

    name = "leader"
    description = "Leads."
    agents = ("painter", "sailor")

    async def run(self, request: AgentRequest) -> str:
        async with trio.open_nursery() as nursery:
            for member in self.agents:
                nursery.start_soon(request.delegate, member, "come")
            await meeting.join(self.brought(request))
        return "met"


class Saver(Agent):
    """Keeps what it was told as its state, and can go on from there."""

    name = "saver"
    description = "Saves."
    resumable = True

    async def run(self, request: AgentRequest) -> str:
        await request.checkpoint({"told": request.content})
        await meeting.join(request.context)
        return "saved"


kept: list[AgentRequest] = []
"""What the hoarder keeps: the fault that it stands for."""


class Hoarder(Agent):
    """Keeps its request in a variable of its module, which no agent should."""

    name = "hoarder"
    description = "Hoards."
    tools = ("clock",)

    async def run(self, request: AgentRequest) -> str:
        kept.append(request)
        await meeting.join(self)
        return "kept"
