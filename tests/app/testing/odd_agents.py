"""An agent that keeps its words to itself, one that keeps them in its class, and one that fails."""

from typing import ClassVar

import trio

from app.agents import Agent, AgentRequest


class Tidy(Agent):
    """Keeps a list of its own."""

    name = "tidy"
    description = "Waits."

    def __init__(self) -> None:
        self.kept: list[str] = []

    async def run(self, request: AgentRequest) -> str:
        """Keep, say, wait."""
        self.kept.append(request.content)
        await request.say("begun")
        await trio.sleep_forever()
        raise AssertionError


class Hoarder(Tidy):
    """Keeps a list for everybody."""

    name = "hoarder"
    kept: ClassVar[list[str]] = []  # type: ignore[misc]

    def __init__(self) -> None:
        pass


class Broken(Agent):
    """Fails."""

    name = "broken"
    description = "Fails."

    async def run(self, request: AgentRequest) -> str:
        """Fail."""
        raise LookupError(request.content)
