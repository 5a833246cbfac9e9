"""Sub-agents: agents that run in a request inside the request of the agent that asked for them."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import NAMESPACE_OID, uuid5

import attrs
import trio

from app.engine.errors import AgentFailed, AgentTimeout, TooManyAgents, UndeclaredAgent
from nurseries.request import Failure, contain, open_child

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.engine.checkpoints import Checkpoints
    from app.engine.registry import AgentRegistry
    from app.engine.request import AgentRequest, Answer
    from nurseries.request import Request

_MAX_OPERATION: Final = 32
_SUFFIX: Final = len("__01234567")


def parent_run_id(run_id: str, agent: str) -> str:
    """Return the run id of the request that a sub-agent of this name and run id was started in."""
    return run_id[: -_SUFFIX - len(agent[:_MAX_OPERATION])]


def counts_of(usage: Any) -> dict[str, int]:
    """Return the numbers of a usage."""
    return {name: amount for name, amount in usage.items() if isinstance(amount, int)}


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

    @property
    def resumable(self) -> bool:
        """Whether it goes on from its last checkpoint, if its parent does."""
        ...

    async def run(self, request: AgentRequest) -> Answer | str | None:
        """Do the work."""
        ...


class Play(Protocol):
    """Runs an agent in a request."""

    async def __call__(
        self, request: Request, worker: Worker, content: str, message_id: str, checkpoints: Checkpoints
    ) -> Answer:
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
        checkpoints: of the parent.
        usage: what all of them used, in earlier lives of the run too, and how many there were (`sub_agents`).
    """

    request: Request
    registry: AgentRegistry
    names: tuple[str, ...]
    family: Family
    play: Play
    checkpoints: Checkpoints
    usage: Counter[str] = attrs.field(init=False)

    @usage.default
    def _used(self) -> Counter[str]:
        return Counter(self.checkpoints.past.usage)

    def descriptions(self) -> dict[str, str]:
        """Return what the declared agents are for, by name."""
        return {name: self.registry.get(name).description for name in self.names}

    async def delegate(
        self, name: str, content: str, *, seconds: float | None = None, call_id: str | None = None
    ) -> Answer:
        """Run a declared agent, unless it has ended in an earlier life of the run; see `run`.

        Raises:
            UndeclaredAgent: the parent does not name it in its `agents`.
        """
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise UndeclaredAgent(f"{name[:64]!r} is none of the agents declared in `agents`: {known}")
        earlier = self.checkpoints.past.children.get(call_id) if call_id is not None else None
        if earlier is None or earlier.outcome is None:
            return await self.run(self.registry.create(name), content, seconds=seconds, call_id=call_id)
        await trio.lowlevel.checkpoint()
        if isinstance(earlier.outcome, Failure):
            raise AgentFailed(name, earlier.outcome)
        return earlier.outcome

    async def run(
        self, worker: Worker, content: str, *, seconds: float | None = None, call_id: str | None = None
    ) -> Answer:
        """Run an agent in a child request, tell the user so, and return its answer.

        Whatever it raises stays with it: the user is told with `agent_failed`, and the parent by the error below.
        Of a child that is cancelled, with its parent or by it, nothing more is told.

        Args:
            worker: the agent.
            content: what it is asked.
            seconds: how long it may take.
            call_id: what the parent knows it by, in all lives of the run.

        Raises:
            AgentFailed: it failed, or took too long.
            TooManyAgents, DepthExceeded: there are as many as there may be.
        """
        self.family.add(worker.name)
        if not self.checkpoints.keeping:
            call_id = None
        earlier = self.checkpoints.past.children.get(call_id) if call_id is not None else None
        run_id = earlier.run_id if earlier is not None and worker.resumable else None
        async with open_child(self.request, worker.name[:_MAX_OPERATION], run_id=run_id) as child:
            checkpoints = await self.checkpoints.child(child.context, call_id, resumable=worker.resumable)
            message_id = str(uuid5(NAMESPACE_OID, child.context.run_id))
            if run_id is None:
                await self._tell_start(child, worker, call_id)
            else:
                await _tell_resumption(child, checkpoints, message_id)
            work = partial(self.play, child, worker, content, message_id, checkpoints)
            result = await contain(child.context, partial(_within, seconds, worker.name, work))
            about = {"agent": worker.name, "depth": child.context.operation_depth}
            if isinstance(result, Failure):
                failure = {"code": result.code, "message": result.message}
                await checkpoints.end(child.events, "agent_failed", about | failure)
                raise AgentFailed(worker.name, result)
            said = {"message_id": message_id, "output": result.output, "usage": dict(result.usage)}
            await checkpoints.end(child.events, "agent_completed", about | said)
            self.usage.update(counts_of(result.usage))
            return result

    async def _tell_start(self, child: Request, worker: Worker, call_id: str | None) -> None:
        self.usage["sub_agents"] += 1
        context = child.context
        payload = {
            "agent": worker.name,
            "depth": context.operation_depth,
            "request_id": context.request_id,
            "parent_request_id": context.parent_request_id,
        }
        await child.events.emit("agent_started", payload | ({} if call_id is None else {"call_id": call_id}))


async def _tell_resumption(child: Request, checkpoints: Checkpoints, message_id: str) -> None:
    last = checkpoints.past.last
    payload = {
        "step": 0 if last is None else last.step,
        "output": "" if last is None else last.output,
        "message_id": message_id,
        "request_id": child.context.request_id,
    }
    await child.events.emit("run_resumed", payload)


async def _within(seconds: float | None, name: str, work: Callable[[], Awaitable[Answer]]) -> Answer:
    with trio.move_on_after(math.inf if seconds is None else seconds):
        return await work()
    raise AgentTimeout(f"{name} did not answer within {seconds:g} seconds")
