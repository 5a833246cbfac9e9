"""Which agents there are is settled at startup, and an agent is made for each request."""

from typing import ClassVar

import pytest

from app.engine.agent import Agent
from app.engine.engine import Catalog, built_in_agents, built_in_tools
from app.engine.errors import UnknownAgent
from app.engine.registry import AgentRegistry
from app.engine.request import Answer
from nurseries.errors import StartupFailed


class Echo(Agent):
    """Repeats what it is told."""

    name: ClassVar[str] = "echo"
    description: ClassVar[str] = "Repeats."
    tools: ClassVar[tuple[str, ...]] = ("clock",)

    async def run(self, request):
        return Answer(request.content)


def _needy(self, shared):
    self.shared = shared


def variant(**changes):
    return type("Variant", (Echo,), changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "Has Spaces"},
        {"name": "x" * 65},
        {"name": None},
        {"description": " "},
        {"description": None},
        {"tools": "clock"},
        {"tools": ["clock"]},
        {"tools": ("clock", "clock")},
        {"tools": (1,)},
    ],
)
def test_what_cannot_be_shown_is_refused(changes):
    """Name, description and tools are checked where they are registered; the error names the attribute."""
    with pytest.raises(ValueError, match=rf"Variant\.{next(iter(changes))}"):
        AgentRegistry([variant(**changes)])


def test_what_cannot_run_is_refused():
    """An instance, another class, an agent without `run`, and one that would need arguments."""
    for wrong in (Echo(), dict, Agent, variant(__init__=_needy)):
        with pytest.raises(TypeError):
            AgentRegistry([wrong])


def test_names_are_taken_once_and_before_the_start():
    """Neither a duplicate nor a latecomer changes what a name means."""
    registry = AgentRegistry([Echo])
    with pytest.raises(ValueError, match="'echo' is registered already"):
        registry.register(variant())
    registry.freeze()
    with pytest.raises(RuntimeError):
        registry.register(variant(name="late"))


def test_each_request_gets_an_agent_of_its_own():
    """What an agent keeps in itself, no other request can see."""
    registry = AgentRegistry([Echo])
    assert registry.create("echo") is not registry.create("echo")


@pytest.mark.parametrize("name", ["nobody", "", "ECHO", "x" * 10_000, "\0"])
def test_an_unknown_agent_names_the_field(name):
    """The caller learns that `agent` is wrong, in a message of bounded length."""
    with pytest.raises(UnknownAgent) as unknown:
        AgentRegistry([Echo]).create(name)
    assert unknown.value.field == "agent"
    assert len(str(unknown.value)) < 200


def test_describe():
    """Clients see name, description and tools; `load` only where it is switched on."""
    assert AgentRegistry([Echo]).describe() == [
        {"name": "echo", "description": "Repeats.", "tools": ["clock"]}
    ]
    assert [agent["name"] for agent in built_in_agents().describe()] == ["analyst", "assistant"]
    assert [agent["name"] for agent in built_in_agents(load=True).describe()] == [
        "analyst",
        "assistant",
        "load",
    ]


def test_the_catalog_closes_the_registries():
    """A server that names a tool it does not have does not start; one that has started takes no more."""
    agents, tools = AgentRegistry([Echo]), built_in_tools()
    Catalog(agents=agents, tools=tools)
    with pytest.raises(RuntimeError):
        agents.register(variant(name="late"))
    with pytest.raises(StartupFailed, match="agent 'needy': no such tool: 'missing'"):
        Catalog(agents=AgentRegistry([variant(name="needy", tools=("missing",))]), tools=built_in_tools())
