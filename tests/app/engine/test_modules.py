"""Agents from a module of one's own."""

import linecache
import sys

import pytest

from app.engine.engine import built_in_agents, built_in_tools
from app.engine.modules import register_module
from nurseries.errors import StartupFailed

GOOD = """
from app.agents import Agent, Answer
from app.engine.assistant import Assistant  # is imported, and so not this module's

class _Base(Agent):
    description = "Says what it is told to."

class Parrot(_Base):
    name = "parrot"
    tools = ("clock",)

    async def run(self, request):
        await request.say(request.content)
        return Answer(request.said())
"""
FUNCTION = """from app.agents import agent

@agent(name="parrot", description="Repeats.", tools=("clock",))
async def parrot(request):
    return request.content
"""
PLAIN = """
class Plain:
    name = "plain"
    description = "Is no subclass of anything."

    async def run(self, request):
        return request.content
"""
TOOL = """from app.agents import tool

@tool
async def clock(zone: str) -> str:
    'The time.'
    return zone
"""
MEMBER = """from app.agents import Member, Supervisor

class Desk(Supervisor):
    members = (
        Member("assistant", on_failure="ignore"),
    )
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that writes a module into the current directory and registers it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def register(text: str | None):
        linecache.clearcache()
        if text is not None:
            (tmp_path / "my_agents.py").write_text(text)
        agents = built_in_agents()
        register_module("my_agents", agents, built_in_tools())
        return agents

    yield register
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_agents"]:
        del sys.modules[name]


def names(agents):
    """Return the names of the agents that are not built in."""
    built_in = {each["name"] for each in built_in_agents().describe()}
    return [each["name"] for each in agents.describe() if each["name"] not in built_in]


def test_registered(module):
    """The module's own agents are offered beside the built-in ones; bases and imports are not."""
    assert names(module(GOOD)) == ["parrot"]


FORMS = """
from app.agents import Agent, agent, tool

@tool
async def shout(text: str) -> str:
    'Make it loud.'
    return text.upper()

@agent
async def parrot(request):
    '''Repeats what it is told.

    And no more.
    '''
    return request.content

@agent(name="loud-parrot", description="Shouts.", tools=("shout",), agents=("parrot", "macaw"))
async def loud(request):
    return request.content

class Plain:
    name = "plain"
    description = "Is no subclass of anything."

    async def run(self, request):
        return request.content

@agent(name="crow", description="Is decorated.")
class Crow:
    async def run(self, request):
        return request.content

class Macaw(Agent):
    name = "macaw"
    description = "Needs no code."
    system = "You are a macaw."

again = Macaw  # by another name, and once all the same

class Helper:
    'Not an agent: nobody could ask for it.'

    async def run(self, request): ...
"""


def test_forms(module):
    """A function, a decorated class, a plain one and a system prompt are agents; tools are registered with them."""
    agents = module(FORMS)
    assert names(agents) == ["crow", "loud-parrot", "macaw", "parrot", "plain"]
    described = {each["name"]: each for each in agents.describe()}
    assert described["parrot"] == {"name": "parrot", "description": "Repeats what it is told.", "tools": []}
    assert described["loud-parrot"]["tools"] == ["shout"]
    assert agents.get("loud-parrot").agents == ("parrot", "macaw")
    for name in ("plain", "crow", "parrot"):
        assert agents.create(name) is not agents.create(name)


def test_a_package(module, tmp_path):
    """What a package takes from its own parts is its own."""
    (tmp_path / "my_agents").mkdir()
    (tmp_path / "my_agents" / "parrots.py").write_text(GOOD)
    text = "from my_agents.parrots import Parrot\nfrom app.engine.load import Load\n"
    (tmp_path / "my_agents" / "__init__.py").write_text(text)
    assert names(module(None)) == ["parrot"]


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("x = 1\nx.y\n", "cannot be imported: AttributeError", 2),
        ("import no_such_thing\n", "cannot be imported: ModuleNotFoundError", 1),
        ("x = 1\nx = = 1\n", "cannot be imported: SyntaxError", 2),
        ("raise SystemExit(3)\n", "cannot be imported: SystemExit", 1),
        ("import re\n\nre.compile('(')\n", "cannot be imported: error", 3),
        (GOOD.replace("async def run", "async def walk"), "Parrot defines neither `run` nor `system`", 8),
        (GOOD.replace('"parrot"', '"Parrot!"'), "Parrot.name: lower case letters", 8),
        (
            GOOD.replace('"parrot"', '"assistant"'),
            "is registered already, by app.engine.assistant.Assistant",
            8,
        ),
        (GOOD.replace('"clock"', '"telescope"'), "no such tool: 'telescope'", 8),
        (GOOD.replace("tools =", "agents ="), "no such agent: 'clock'", 8),
        (GOOD.replace('("clock",)', '"clock"'), "Parrot.tools: a tuple of names", 8),
        (GOOD.replace('"clock",', '"clock", "clock"'), "Parrot.tools: a name stands there twice", 8),
        (
            GOOD.replace("async def", "def").replace("await ", ""),
            "it must be `async def run(self, request)`",
            8,
        ),
        (GOOD.replace("self, request", "self"), "it must be `async def run(self, request)`: too many", 8),
        (GOOD.replace("self, request", "self, request, more"), "missing a required argument: 'more'", 8),
        (GOOD.replace("return Answer", "yield Answer"), "not one that yields them", 8),
        (GOOD + "    def __init__(self, shared): ...\n", "it must take no arguments", 8),
        (FUNCTION.replace("async ", ""), "it must be `async def parrot(request)`, not a plain function", 3),
        (FUNCTION.replace("(request)", "()"), "it must be `async def parrot(request)`: too many", 3),
        (FUNCTION.replace("return", "yield"), "not one that yields them", 3),
        (FUNCTION.replace("clock", "telescope"), "no such tool: 'telescope'", 3),
        (FUNCTION.replace('"Repeats."', '" "'), "parrot.description: a sentence for people", 3),
        (FUNCTION.replace("name=", "nam="), "an agent has no nam; it has agents, description", 3),
        (FUNCTION + FUNCTION.replace("def parrot", "def other"), "'parrot' is registered already", 8),
        (PLAIN.replace("async ", ""), "it must be `async def run(self, request)`", 2),
        (PLAIN.replace('"plain"', "1"), "Plain.name: lower case", 2),
        (TOOL + FUNCTION, "tool 'clock' is registered already", 3),
        (TOOL.replace("zone: str", "user_id: str"), "identity comes from the context", 3),
        (MEMBER, "ValueError: 'on_failure' must be in ('end', 'skip') (got 'ignore') (", 5),
    ],
)
def test_mistakes(module, text, reason, line):
    """A mistake is said with its module, its file and its line."""
    with pytest.raises(StartupFailed) as failed:
        module(text)
    message = str(failed.value)
    assert message.startswith("the agents module my_agents")
    assert reason in message
    assert "my_agents.py" in message
    assert f"line {line}" in message
    assert len(message.splitlines()) == 1


def test_all_mistakes_at_once(module):
    """Whoever has made three need not start the server three times to find them."""
    text = PLAIN.replace("async ", "") + FUNCTION.replace("clock", "telescope") + GOOD.replace('"clock"', "1")
    with pytest.raises(StartupFailed) as failed:
        module(text.replace('"parrot"\n', '"other-parrot"\n'))
    lines = str(failed.value).splitlines()
    assert [int(line.partition("line ")[2].partition(":")[0]) for line in lines] == [2, 10, 20]


def test_without_agents(module):
    """A module without any agent is a mistake: somebody expects one."""
    with pytest.raises(StartupFailed, match=r"my_agents \(.*my_agents.py\) defines no agent"):
        module("from app.engine.assistant import Assistant\n")
