"""All agents of a server: classes by name, filled at startup, then frozen."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from app.engine.agent import Agent
from app.engine.errors import UnknownAgent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
            TypeError: it is not an `Agent`, cannot be run, or cannot be made without arguments.
            ValueError: its name, description, tools or agents cannot be used, or the name is taken.
            RuntimeError: the server has started.
        """
        if self._frozen:
            raise RuntimeError("agents are registered at startup only")
        if not (isinstance(agent, type) and issubclass(agent, Agent)):
            raise TypeError(f"{agent!r} is not a subclass of Agent")
        _check(agent)
        if (other := self._agents.get(agent.name)) is not None:
            raise ValueError(
                f"agent {agent.name!r} is registered already, by {other.__module__}.{other.__name__}"
            )
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

    def require(self, names: Iterable[str]) -> None:
        """See that there are agents of these names.

        Raises:
            ValueError: there is no such agent.
        """
        if missing := [name for name in names if name not in self._agents]:
            raise ValueError(f"no such agent: {', '.join(map(repr, missing))}")

    def create(self, name: str) -> Agent:
        """Return a new agent, for one request.

        Raises:
            UnknownAgent: there is none of that name.
        """
        return self.get(name)()

    def __iter__(self) -> Iterator[type[Agent]]:
        return iter(self._agents.values())

    def describe(self) -> list[dict[str, Any]]:
        """Return what a client may know of the agents, by name."""
        return [
            {"name": agent.name, "description": agent.description, "tools": list(agent.tools)}
            for _, agent in sorted(self._agents.items())
        ]


def _check(agent: type[Agent]) -> None:
    own = agent.__name__
    if inspect.signature(agent).parameters:
        raise TypeError(f"{own}: one is made for each request, so it must take no arguments")
    agent.prepare()
    if agent.run is Agent.run:
        if not isinstance(agent.system, str) or not agent.system.strip():
            raise TypeError(f"{own} defines neither `run` nor `system`")
    else:
        _check_run(agent)
    name, description = getattr(agent, "name", None), getattr(agent, "description", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{own}.name: lower case letters, digits, '-' and '_', at most 64, not {name!r}")
    if not isinstance(description, str) or not description.strip():
        raise ValueError(f"{own}.description: a sentence for people, not {description!r}")
    for field in ("tools", "agents"):
        names = getattr(agent, field)
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{own}.{field}: a tuple of names, not {names!r}")
        if len(set(names)) < len(names):
            raise ValueError(f"{own}.{field}: a name stands there twice: {names!r}")


def _check_run(agent: type[Agent]) -> None:
    """Look at `run` before the first user does."""
    run = agent.run
    is_function = isinstance(inspect.getattr_static(agent, "run"), staticmethod)  # declared with `@agent`
    wanted = f"async def {agent.__name__}(request)" if is_function else "async def run(self, request)"
    if inspect.isasyncgenfunction(run):
        raise TypeError(
            f"{agent.__name__}: it must be `{wanted}` that says its pieces, not one that yields them"
        )
    if not inspect.iscoroutinefunction(run):
        raise TypeError(f"{agent.__name__}: it must be `{wanted}`, not a plain function")
    try:
        inspect.signature(run).bind(*["request"] if is_function else ["self", "request"])
    except TypeError as error:
        raise TypeError(f"{agent.__name__}: it must be `{wanted}`: {error}") from None
