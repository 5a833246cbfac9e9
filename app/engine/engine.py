"""Making an engine for one request: its agent, its tools and its model, from what startup put into the catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from app.engine.agent import AgentRequest, RunLimits
from app.engine.assistant import Assistant
from app.engine.load import Load
from app.engine.offline import OfflineModel
from app.engine.registry import AgentRegistry
from app.tools.calculator import CALCULATOR
from app.tools.clock import CLOCK
from app.tools.dispatcher import Dispatcher, ToolLimits
from app.tools.registry import ToolRegistry
from app.tools.search_messages import SEARCH_MESSAGES
from app.tools.threads import ToolThreads
from nurseries.errors import StartupFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.engine.agent import Answer
    from app.engine.model import Model
    from nurseries.request import Request


@attrs.frozen(kw_only=True, eq=False)
class Catalog:
    """What engines are made of: fixed once the server starts, and without anything of any user.

    Attributes:
        agents: agent classes by name; frozen by the catalog.
        tools: tools by name; frozen by the catalog.
        model: makes the model of one request.
        limits: bounds of each run.
        tool_limits: bounds of each tool call.
        threads: worker threads for tools that block.

    Raises:
        StartupFailed: at construction; an agent names a tool that there is not.
    """

    agents: AgentRegistry
    tools: ToolRegistry
    model: Callable[[], Model] = OfflineModel
    limits: RunLimits = attrs.field(factory=RunLimits)
    tool_limits: ToolLimits = attrs.field(factory=ToolLimits)
    threads: ToolThreads = attrs.field(factory=ToolThreads)

    def __attrs_post_init__(self) -> None:
        for agent in self.agents.describe():
            try:
                self.tools.select(agent["tools"])
            except ValueError as error:
                raise StartupFailed(f"agent {agent['name']!r}: {error}") from None
        self.agents.freeze()
        self.tools.freeze()


def built_in_agents(*, load: bool = False) -> AgentRegistry:
    """Return a registry with the built-in agents, open for more; `load` only where it is asked for."""
    return AgentRegistry([Assistant, Load] if load else [Assistant])


def built_in_tools() -> ToolRegistry:
    """Return a registry with the built-in tools, open for more."""
    return ToolRegistry([CALCULATOR, SEARCH_MESSAGES, CLOCK])


async def run_agent(  # noqa: PLR0913  # who, with what, what for: each named at the call
    request: Request,
    catalog: Catalog,
    *,
    agent: str,
    content: str,
    message_id: str,
    on_said: Callable[[str], None] | None = None,
) -> Answer:
    """Make an engine for `request`, run the agent in it and return the answer; nothing of it stays.

    `on_said` is called with each piece of the answer, without waiting, just before it is sent: what it has
    collected is what a run that is cancelled or fails leaves behind.

    Raises:
        UnknownAgent: there is no such agent.
    """
    worker = catalog.agents.create(agent)
    tools = Dispatcher(
        catalog.tools.select(worker.tools),
        context=request.context,
        database=request.database,
        events=request.events,
        threads=catalog.threads,
        limits=catalog.tool_limits,
    )
    return await worker.run(
        AgentRequest(
            context=request.context,
            database=request.database,
            events=request.events,
            nursery=request.nursery,
            tools=tools,
            model=catalog.model(),
            content=content,
            message_id=message_id,
            limits=catalog.limits,
            agent=agent,
            on_said=on_said,
        )
    )
