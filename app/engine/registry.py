"""All agents of a server: classes by name, filled at startup, then frozen."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from app.engine.agent import Agent
from app.engine.errors import UnknownAgent

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class AgentRegistry:
    """Agent classes by name. What is shared between requests is classes, never an agent."""

    def __init__(self, agents: Iterable[type[Agent]] = ()) -> None:
        self._agents: dict[str, type[Agent]] = {}
        self._frozen = False
        for agent in agents:
            self.register(agent)

    def register(self, agent: type[Agent]) -> None:
        """Add an agent.

        Raises:
            TypeError: it is not an `Agent`, not complete, or cannot be made without arguments.
            ValueError: its name, description or tools are not fit to be shown, or the name is taken.
            RuntimeError: the server has started.
        """
        if self._frozen:
            raise RuntimeError("agents are registered at startup only")
        if not (isinstance(agent, type) and issubclass(agent, Agent)):
            raise TypeError(f"{agent!r} is not a subclass of Agent")
        _check(agent)
        if agent.name in self._agents:
            raise ValueError(f"agent {agent.name!r} is registered already")
        self._agents[agent.name] = agent

    def freeze(self) -> None:
        """Take no more agents."""
        self._frozen = True

    def get(self, name: str) -> type[Agent]:
        """Return the class of an agent.

        Raises:
            UnknownAgent: there is none of that name.
        """
        try:
            return self._agents[name]
        except KeyError:
            raise UnknownAgent(name) from None

    def create(self, name: str) -> Agent:
        """Return a new agent, for one request.

        Raises:
            UnknownAgent: there is none of that name.
        """
        return self.get(name)()

    def describe(self) -> list[dict[str, Any]]:
        """Return what a client may know of the agents, by name."""
        return [
            {"name": agent.name, "description": agent.description, "tools": list(agent.tools)}
            for _, agent in sorted(self._agents.items())
        ]


def _check(agent: type[Agent]) -> None:
    if inspect.isabstract(agent):
        raise TypeError(f"{agent.__name__} does not define: {', '.join(sorted(agent.__abstractmethods__))}")
    if inspect.signature(agent).parameters:
        raise TypeError(f"{agent.__name__}: one is made for each request, so it must take no arguments")
    name, description, tools = (getattr(agent, field, None) for field in ("name", "description", "tools"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{agent.__name__}.name: lower case letters, digits, '-' and '_', at most 64, not {name!r}"
        )
    if not isinstance(description, str) or not description.strip():
        raise ValueError(f"{agent.__name__}.description: a sentence for people, not {description!r}")
    if (
        not isinstance(tools, tuple)
        or not all(isinstance(tool, str) for tool in tools)
        or len(set(tools)) < len(tools)
    ):
        raise ValueError(f"{agent.__name__}.tools: a tuple of different tool names, not {tools!r}")
