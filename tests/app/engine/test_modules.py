"""Agents from a module of one's own."""

import sys

import pytest

from app.engine.engine import built_in_agents, built_in_tools
from app.engine.modules import register_module
from nurseries.errors import StartupFailed

GOOD = """
from app.engine.agent import Agent, Answer
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


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that writes a module into the current directory and registers it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def register(text: str, name: str = "my_agents"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)
        agents = built_in_agents()
        register_module(name, agents, built_in_tools())
        return agents

    yield register
    sys.modules.pop("my_agents", None)


def test_registered(module):
    """The module's own agents are offered beside the built-in ones; bases and imports are not."""
    agents = module(GOOD)
    assert [agent["name"] for agent in agents.describe()] == ["assistant", "parrot"]


@pytest.mark.parametrize(
    ("text", "reason", "line"),
    [
        ("x = 1\nx.y\n", "cannot be imported: AttributeError", 2),
        ("import no_such_thing\n", "cannot be imported: ModuleNotFoundError", 1),
        ("x = 1\nx = = 1\n", "cannot be imported: SyntaxError", 2),
        ("raise SystemExit(3)\n", "cannot be imported: SystemExit", 1),
        (GOOD.replace("async def run", "async def walk"), "Parrot does not define: run", 8),
        (GOOD.replace('"parrot"', '"Parrot!"'), "Parrot.name: lower case letters", 8),
        (GOOD.replace('"parrot"', '"assistant"'), "'assistant' is registered already", 8),
        (GOOD.replace('"clock"', '"telescope"'), "no such tool: 'telescope'", 8),
    ],
)
def test_mistakes(module, tmp_path, text, reason, line):
    """A mistake is said with its module, its file and its line."""
    with pytest.raises(StartupFailed) as failed:
        module(text)
    message = str(failed.value)
    assert message.startswith("the agents module my_agents")
    assert reason in message
    assert "my_agents.py" in message
    assert f"line {line}" in message


def test_without_agents(module, tmp_path):
    """A module without any agent is a mistake: somebody expects one."""
    with pytest.raises(StartupFailed, match=r"my_agents \(.*my_agents.py\) defines no subclass of Agent"):
        module("from app.engine.assistant import Assistant\n")
