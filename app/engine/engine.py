"""Making an engine for one request: its agent, its tools and its model, from what startup put into the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from app.engine.analyst import Analyst
from app.engine.assistant import Assistant
from app.engine.checkpoints import NoCheckpoints
from app.engine.children import Children, Family
from app.engine.errors import AnswerTooLong, InvalidAnswer
from app.engine.load import Load
from app.engine.models.cascade import ModelCascade
from app.engine.models.meter import Meter, MeteredModel
from app.engine.models.offline import OfflineModel
from app.engine.registry import AgentRegistry
from app.engine.request import AgentRequest, Answer, RunLimits
from app.tools.analysis.settings import FileSettings
from app.tools.analysis.tools import analysis_tools
from app.tools.analysis.workbench import Workbench
from app.tools.calculator import CALCULATOR
from app.tools.clock import CLOCK
from app.tools.dispatcher import Dispatcher, ToolLimits
from app.tools.mcp.credentials import TokenVault
from app.tools.mcp.toolbox import Toolbox
from app.tools.registry import ToolRegistry
from app.tools.search_messages import SEARCH_MESSAGES
from app.tools.threads import ToolThreads
from nurseries.errors import StartupFailed
from nurseries.nursery import open_request_nursery

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.engine.checkpoints import Checkpoints
    from app.engine.children import Worker
    from app.engine.model import Model
    from nurseries.request import Request


@attrs.frozen(kw_only=True, eq=False)
class Catalog:
    """What engines are made of: fixed once the server starts, and without anything of any user.

    Attributes:
        agents: agent classes by name; frozen by the catalog.
        tools: tools by name; frozen by the catalog.
        model: makes the model of one request.
        cascade: the models behind it.
        limits: bounds of each run.
        tool_limits: bounds of each tool call.
        toolbox: the MCP servers.
        workbench: where files are analysed.
        threads: worker threads for tools that block.

    Raises:
        StartupFailed: at construction; an agent names a tool or an agent that there is not.
    """

    agents: AgentRegistry
    tools: ToolRegistry
    model: Callable[[], Model] = OfflineModel
    cascade: ModelCascade = attrs.field(factory=lambda: ModelCascade(()))
    limits: RunLimits = attrs.field(factory=RunLimits)
    tool_limits: ToolLimits = attrs.field(factory=ToolLimits)
    workbench: Workbench = attrs.field(factory=lambda: Workbench(FileSettings()))
    toolbox: Toolbox = attrs.field(factory=lambda: Toolbox((), TokenVault(b"")))
    threads: ToolThreads = attrs.field(factory=ToolThreads)

    def __attrs_post_init__(self) -> None:
        for agent in self.agents:
            try:
                self.tools.select(agent.tools)
                self.agents.require(agent.agents)
            except ValueError as error:
                raise StartupFailed(f"agent {agent.name!r}: {error}") from None
        self.agents.freeze()
        self.tools.freeze()


def built_in_agents(*, load: bool = False) -> AgentRegistry:
    """Return a registry with the built-in agents, open for more; `load` only where it is asked for."""
    return AgentRegistry([Assistant, Analyst, *([Load] if load else [])])


def built_in_tools(workbench: Workbench | None = None) -> ToolRegistry:
    """Return a registry with the built-in tools, open for more; those for files work at the workbench."""
    return ToolRegistry(
        [CALCULATOR, SEARCH_MESSAGES, CLOCK, *analysis_tools(workbench or Workbench(FileSettings()))]
    )


async def run_agent(  # noqa: PLR0913  # who, with what, what for: each named at the call
    request: Request,
    catalog: Catalog,
    *,
    agent: str,
    content: str,
    message_id: str,
    on_said: Callable[[str], None] | None = None,
    checkpoints: Checkpoints | None = None,
    meter: Meter | None = None,
) -> Answer:
    """Make an engine for `request`, run the agent in it and return the answer; nothing of it stays.

    `on_said` is called with each piece of the answer, without waiting, just before it is sent: what it has
    collected is what a run that is cancelled or fails leaves behind. `checkpoints` is what outlives the server.
    `meter` counts what the models cost, of all agents of the run.

    Raises:
        UnknownAgent: there is no such agent.
    """
    family = Family(catalog.limits.sub_agents)
    engine = _Engine(catalog, family, meter or Meter())
    worker = catalog.agents.create(agent)
    return await engine.run(
        request, worker, content, message_id, checkpoints or NoCheckpoints(), on_said=on_said
    )


@attrs.frozen(eq=False)
class _Engine:
    """What the agents of one run, at all depths, are run with."""

    catalog: Catalog
    family: Family
    meter: Meter

    async def run(  # noqa: PLR0913  # all that an agent's request is made of
        self,
        request: Request,
        worker: Worker,
        content: str,
        message_id: str,
        checkpoints: Checkpoints,
        *,
        on_said: Callable[[str], None] | None = None,
    ) -> Answer:
        """Give an agent a request of its own making, and return its answer."""
        catalog = self.catalog
        async with (
            catalog.toolbox.open(request.context, request.database, worker.name) as served,
            open_request_nursery() as nursery,  # what the agent's own tasks say is part of the answer
        ):
            tools = Dispatcher(
                (*catalog.tools.select(worker.tools), *served),
                context=request.context,
                database=request.database,
                events=request.events,
                threads=catalog.threads,
                limits=catalog.tool_limits,
                ledger=checkpoints,
            )
            asked = AgentRequest(
                context=request.context,
                database=request.database,
                emitter=request.events,
                nursery=nursery,
                tools=tools,
                model=MeteredModel(catalog.model(), self.meter, catalog.limits.tokens),
                content=content,
                message_id=message_id,
                limits=catalog.limits,
                agent=worker.name,
                on_said=on_said,
                checkpoints=checkpoints,
                children=Children(request, catalog.agents, worker.agents, self.family, self.run, checkpoints),
            )
            result = await worker.run(asked)
        return await _settle(asked, result)


async def _settle(request: AgentRequest, result: object) -> Answer:
    """Make an answer of what an agent returned, and say of it what has not been said.

    Raises:
        InvalidAnswer: it is neither an answer, nor text, nor None.
        AnswerTooLong: it is.
    """
    if result is None:
        return Answer(request.said())
    answer = Answer(result) if isinstance(result, str) else result
    if not isinstance(answer, Answer):
        raise InvalidAnswer(f"the agent returned {type(answer).__name__}, not an Answer, text or None")
    if len(answer.output) > request.limits.said_characters:
        raise AnswerTooLong("the answer is longer than a run may say")
    said = request.said()
    if answer.output.startswith(said):
        await request.say(answer.output[len(said) :])
    return answer
