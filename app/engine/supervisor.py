"""The agent that has others do the work: it plans, runs them at the same time, and composes what they say."""

from __future__ import annotations

from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal

import attrs
import msgspec
import trio

from app.engine.agent import Agent
from app.engine.children import counts_of
from app.engine.errors import AgentFailed, MemberFailed
from app.engine.loop import converse
from app.engine.policy import Policy
from app.engine.request import Answer
from app.tools.schema import Parameters, Tool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.engine.request import AgentRequest
    from app.tools.schema import ToolContext

DELEGATE: Final = "delegate"
TASK_CHARACTERS: Final = 20_000
LONGEST_SECONDS: Final = 86_400.0
"""How long a sub-agent without a time limit of its own may take; one may wait for a person's approval."""

_GUIDE: Final = """\
You lead the agents below. Split what the user asks into tasks, and give each task to the agent that it suits, with \
`delegate`. Delegate tasks that do not need each other's results in one step, so that they are done at the same time; \
those that do, in a later step. An agent knows nothing but its task: put everything into it that it needs. When you \
have the results, answer the user in one text of your own. If an agent failed, say what is missing for it. Answer \
yourself what needs no agent."""


@attrs.frozen
class Member(Policy):
    """An agent that a supervisor leads, and what becomes of a task at which it fails."""

    agent: str


class Supervisor(Agent):
    """Base of agents that lead others.

    The model plans: in each step it delegates tasks to members, and those of one step run at the same time, each
    in a request inside this one. It gets their results, and goes on or answers. A member that fails for good ends
    the run, or is left out and the model is told so, as its `Member` declares. `system` says what else the model
    should know.

    Attributes:
        members: the agents it leads; a name alone is a `Member` with the defaults.
    """

    members: ClassVar[tuple[Member | str, ...]] = ()
    _members: ClassVar[Mapping[str, Member]]
    _task: ClassVar[type[Parameters]]

    @classmethod
    def prepare(cls) -> None:
        """See that there are members."""
        if not isinstance(cls.members, tuple) or not cls.members:
            raise ValueError(f"{cls.__name__}.members: a tuple of agents, not {cls.members!r}")
        members = [Member(each) if isinstance(each, str) else each for each in cls.members]
        if wrong := [each for each in members if not isinstance(each, Member)]:
            raise ValueError(f"{cls.__name__}.members: names or `Member`s, not {wrong[0]!r}")
        cls.agents = tuple(member.agent for member in members)
        cls._members = MappingProxyType({member.agent: member for member in members})
        cls._task = _task_type(cls.agents)

    async def run(self, request: AgentRequest) -> Answer:
        """Plan, delegate and answer."""
        team = _Team(request, self._members)
        request.tools.add(
            Tool(
                DELEGATE,
                "Give a task to an agent, and get what it answers.",
                self._task,
                team.delegate,
                seconds=LONGEST_SECONDS,
            )
        )
        answer = Answer("")
        with team.scope:
            answer = await converse(request, self._prompt(request))
        if team.failure is not None:
            raise team.failure
        return Answer(answer.output, {**answer.usage, **_sum(answer.usage, request.delegated)})

    def _prompt(self, request: AgentRequest) -> str:
        agents = [f"- {name}: {description}" for name, description in request.agents.items()]
        return "\n".join([self.system, _GUIDE, *agents]).strip()


class _Team:
    """The members at work for one request.

    Attributes:
        scope: around all of the work; cancelled when a failure ends the run.
        failure: the one that did.
    """

    def __init__(self, request: AgentRequest, members: Mapping[str, Member]) -> None:
        self._request = request
        self._members = members
        self.scope = trio.CancelScope()
        self.failure: AgentFailed | None = None

    async def delegate(self, context: ToolContext, task: Any) -> str:
        """Have a member do a task; the function of the tool."""
        member = self._members[task.agent]

        async def work(call_id: str) -> Answer:
            return await self._request.delegate(
                member.agent, task.task, seconds=member.seconds, call_id=call_id
            )

        try:
            return (await member.attempt(context.call_id, work)).output
        except AgentFailed as error:
            if member.on_failure == "skip":
                raise MemberFailed(str(error)) from error
            self.failure = self.failure or error
            self.scope.cancel()
            await trio.sleep_forever()  # it is cancelled, as is whatever else the team does
            raise


def _sum(own: Mapping[str, int | str], others: Mapping[str, int]) -> Mapping[str, int]:
    """Return what a supervisor and its members used together."""
    return Counter(counts_of(own)) + Counter(others)


def _task_type(agents: tuple[str, ...]) -> type[Parameters]:
    """Return the parameters of `delegate`, which a model is told: the agent is one of these, and nobody else."""
    made: Any = msgspec.defstruct(
        "Task",
        [
            ("agent", Literal[agents]),
            ("task", Annotated[str, msgspec.Meta(min_length=1, max_length=TASK_CHARACTERS)]),
        ],
        bases=(Parameters,),
        module=__name__,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    task: type[Parameters] = made
    return task
