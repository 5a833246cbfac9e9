"""All that a module of agents needs, in one place. docs/agents.md is its tutorial."""

from app.engine.agent import Agent, agent
from app.engine.errors import AgentFailed
from app.engine.loop import converse
from app.engine.pipeline import Pipeline
from app.engine.request import AgentRequest, Answer, HistoryMessage, RunLimits
from app.engine.stages import Stage
from app.engine.supervisor import Member, Supervisor
from app.tools.decorator import tool
from app.tools.schema import CallContext, Parameters, Tool, ToolContext

__all__ = [
    "Agent",
    "AgentFailed",
    "AgentRequest",
    "Answer",
    "CallContext",
    "HistoryMessage",
    "Member",
    "Parameters",
    "Pipeline",
    "RunLimits",
    "Stage",
    "Supervisor",
    "Tool",
    "ToolContext",
    "agent",
    "converse",
    "tool",
]
