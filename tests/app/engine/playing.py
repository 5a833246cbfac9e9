"""Running agents in the real engine, over a real database, and hearing what their user hears."""

import json

import attrs

from app.engine.engine import Catalog, built_in_agents, built_in_tools, run_agent
from app.engine.models.offline import OfflineModel
from app.engine.registry import AgentRegistry
from app.engine.request import RunLimits
from nurseries.request import Failure, run_request


def catalog_of(*agents, model=OfflineModel, tools=(), **limits):
    """Return a catalog of these agents and the built-in ones."""
    registry = built_in_agents()
    for agent in agents:
        registry.register(agent)
    tool_registry = built_in_tools()
    for tool in tools:
        tool_registry.register(tool)
    assert isinstance(registry, AgentRegistry)
    return Catalog(agents=registry, tools=tool_registry, model=model, limits=RunLimits(**limits))


@attrs.frozen
class Played:
    """One run.

    Attributes:
        result: the answer, or the failure.
        envelopes: of all its events, as its user got them.
        said: the pieces of its answer.
    """

    result: object
    envelopes: list[dict]
    said: list[str]

    @property
    def output(self):
        assert not isinstance(self.result, Failure), self.result
        return self.result.output

    def story(self):
        """Return what happened, as (depth of the agent, type, agent or text)."""
        depths = {e["run_id"]: e["payload"]["depth"] for e in self.envelopes if e["type"] == "agent_started"}
        return [
            (depths.get(e["run_id"], 0), e["type"], e["payload"].get("agent") or e["payload"].get("text"))
            for e in self.envelopes
        ]


async def play(house, catalog, agent, content="go", *, context=None):
    """Run one agent to its end behind the barrier of its request."""
    context = context or house.context()
    said = []
    with house.streams.listen(context.user_id, events=100_000) as outbox:

        async def engine(request):
            return await run_agent(
                request, catalog, agent=agent.name, content=content, message_id="m1", on_said=said.append
            )

        result = await run_request(house.kernel, context, engine)
        envelopes = [json.loads(event.data) for event in outbox.take_nowait()]
    assert house.pool.statistics().checked_out == 0
    users = [request.context.user_id for request in house.kernel.live.requests.values()]
    assert context.user_id not in users
    return Played(result, envelopes, said)
