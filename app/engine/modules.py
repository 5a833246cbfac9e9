"""Agents of one's own: classes in a Python module that the server is told to offer."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from app.engine.agent import Agent
from nurseries.errors import StartupFailed

if TYPE_CHECKING:
    from types import ModuleType

    from app.engine.registry import AgentRegistry
    from app.tools.registry import ToolRegistry


def register_module(name: str, agents: AgentRegistry, tools: ToolRegistry) -> None:
    """Import a module, also from the current directory, and register the agents that it defines itself.

    These are its subclasses of `Agent` whose names do not begin with an underscore.

    Args:
        name: of the module (`my_agents`, `package.agents`).
        agents: where they are registered.
        tools: what they may name as their tools.

    Raises:
        StartupFailed: the module cannot be imported, has no agent, or has one that cannot be used; the message
            has the file and the line.
    """
    module = _import(name)
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, Agent)
        and each.__module__ == module.__name__
        and not each.__name__.startswith("_")
    ]
    if not found:
        raise StartupFailed(f"the agents module {name} ({module.__file__}) defines no subclass of Agent")
    for agent in found:
        try:
            agents.register(agent)
            tools.select(agent.tools)
        except (TypeError, ValueError) as error:
            raise StartupFailed(f"the agents module {name}, {_place(module, agent)}: {error}") from error


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever its code raises
        raise StartupFailed(
            f"the agents module {name} cannot be imported: {type(error).__name__}: {error}{_cause(error)}"
        ) from error


def _cause(error: BaseException) -> str:
    """Return the place at fault in the module, or nothing where none of its code has run."""
    if isinstance(error, SyntaxError):
        return ""  # its own message has the file and the line
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _place(module: ModuleType, agent: type[Agent]) -> str:
    try:
        return f"{module.__file__}, line {inspect.getsourcelines(agent)[1]}"
    except OSError:
        return str(module.__file__)
