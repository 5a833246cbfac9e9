"""Sub-agents: agents that run in a request inside the request of the agent that asked for them."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import trio

from app.engine.errors import AgentFailed, AgentTimeout, TooManyAgents, UndeclaredAgent
from nurseries.ids import new_id
from nurseries.request import Failure, contain, open_child

if TYPE_CHECKING:
    from app.engine.registry import AgentRegistry
    from app.engine.request import AgentRequest, Answer
    from nurseries.request import Request

_MAX_OPERATION: Final = 32


class Worker(Protocol):
    """What can run as a sub-agent: an agent, or a part of one. The attributes are those of `Agent`."""

    @property
    def name(self) -> str:
        """What its events call it."""
        ...

    @property
    def tools(self) -> tuple[str, ...]:
        """The tools that it may call."""
        ...

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents that it may delegate to."""
        ...

    async def run(self, request: AgentRequest) -> Answer | str | None:
        """Do the work."""
        ...


class Play(Protocol):
    """Runs an agent in a request."""

    async def __call__(self, request: Request, worker: Worker, content: str, message_id: str) -> Answer:
        """Return the agent's answer."""
        ...


@attrs.define(eq=False)
class Family:
    """How many sub-agents a run has had, at all depths together."""

    limit: int
    count: int = 0

    def add(self, agent: str) -> None:
        """Count one more.

        Raises:
            TooManyAgents: it would be one too many.
        """
        if self.count >= self.limit:
            raise TooManyAgents(f"{agent} was not started: a run may have {self.limit} sub-agents in all")
        self.count += 1


@attrs.frozen(eq=False)
class Children:
    """The sub-agents of one request: they have its user and its thread, and all else of their own.

    A child takes no place in its user's budget, for the last place may be its parent's: `Family` and the depth of
    contexts bound how many there are. It lives in the task that asked for it, so it ends before its parent does.

    Attributes:
        request: of the parent.
        registry: of all agents.
        names: of those that the parent declared.
        family: of the run.
        play: how an agent is run.
    """

    request: Request
    registry: AgentRegistry
    names: tuple[str, ...]
    family: Family
    play: Play

    def descriptions(self) -> dict[str, str]:
        """Return what the declared agents are for, by name."""
        return {name: self.registry.get(name).description for name in self.names}

    async def delegate(self, name: str, content: str, *, seconds: float | None = None) -> Answer:
        """Run a declared agent; see `run`.

        Raises:
            UndeclaredAgent: the parent does not name it in its `agents`.
        """
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise UndeclaredAgent(f"{name[:64]!r} is none of the agents declared in `agents`: {known}")
        return await self.run(self.registry.create(name), content, seconds=seconds)

    async def run(self, worker: Worker, content: str, *, seconds: float | None = None) -> Answer:
        """Run an agent in a child request, tell the user so, and return its answer.

        Whatever it raises stays with it: the user is told with `agent_failed`, and the parent by the error below.
        Of a child that is cancelled, with its parent or by it, nothing more is told.

        Args:
            worker: the agent.
            content: what it is asked.
            seconds: how long it may take.

        Raises:
            AgentFailed: it failed, or took too long.
            TooManyAgents, DepthExceeded: there are as many as there may be.
        """
        self.family.add(worker.name)
        message_id = new_id()
        async with open_child(self.request, worker.name[:_MAX_OPERATION]) as child:
            context = child.context
            about = {"agent": worker.name, "depth": context.operation_depth}
            ids = {"request_id": context.request_id, "parent_request_id": context.parent_request_id}
            await child.events.emit("agent_started", about | ids)
            result = await contain(context, partial(self._work, child, worker, content, message_id, seconds))
            if isinstance(result, Failure):
                await child.events.emit(
                    "agent_failed", about | {"code": result.code, "message": result.message}
                )
                raise AgentFailed(worker.name, result)
            said = {"message_id": message_id, "output": result.output, "usage": dict(result.usage)}
            await child.events.emit("agent_completed", about | said)
            return result

    async def _work(
        self, child: Request, worker: Worker, content: str, message_id: str, seconds: float | None
    ) -> Answer:
        with trio.move_on_after(math.inf if seconds is None else seconds):
            return await self.play(child, worker, content, message_id)
        raise AgentTimeout(f"{worker.name} did not answer within {seconds:g} seconds")
