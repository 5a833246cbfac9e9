"""Agents and tools of one's own, from a Python module that the server is told to offer."""

from __future__ import annotations

import importlib
import inspect
import sys
import sysconfig
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import app
from app.engine.agent import Agent, agent
from app.tools.schema import Tool
from nurseries.errors import StartupFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from app.engine.registry import AgentRegistry
    from app.tools.registry import ToolRegistry

_NOT_THEIRS: Final = ("<", *app.__path__, *sysconfig.get_paths().values())
"""Where files begin that nobody wrote for a module of agents: ours, Python's, what was installed, what was generated."""


def register_module(name: str, agents: AgentRegistry, tools: ToolRegistry) -> None:
    """Import a module, also from the current directory, and register the agents and the tools that it defines.

    Its agents are the subclasses of `Agent`, what is declared with `@agent`, and the classes that have a `name`,
    a `description` and a `run`; its tools are the instances of `Tool`. What begins with an underscore, or was
    imported from elsewhere than a part of the module itself, is not meant.

    Args:
        name: of the module (`my_agents`, `package.agents`).
        agents: where its agents are registered.
        tools: where its tools are registered, and what its agents may name.

    Raises:
        StartupFailed: the module cannot be imported, has no agent, or has mistakes; the message has each of them
            with its file and its line.
    """
    module = _import(name)
    mistakes = _Mistakes(module)
    for tool in _defined(module, Tool):
        with mistakes.of(tool.function):
            tools.register(tool)
    declared = [
        each if issubclass(each, Agent) else agent(each) for each in _defined(module, type) if _is_agent(each)
    ]
    if not declared:
        raise StartupFailed(f"the agents module {name} ({module.__file__}) defines no agent")
    usable = []
    for each in declared:
        with mistakes.of(each):
            agents.register(each)
            usable.append(each)
    for each in usable:  # last, since agents may name those that come after them
        with mistakes.of(each):
            tools.select(each.tools)
        with mistakes.of(each):
            agents.require(each.agents)
    mistakes.check()


class _Mistakes:
    """What is wrong in a module, all of it, so that it need not be found out one by one."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._found: list[tuple[str, int, str]] = []

    @contextmanager
    def of(self, declared: Any) -> Iterator[None]:
        """Note what is raised in the block as a mistake in the declaration of an agent or a tool."""
        try:
            yield
        except (TypeError, ValueError) as error:
            self._found.append((*_place(declared, self._module), _words(error)))

    def check(self) -> None:
        """Raise StartupFailed if there are any."""
        if self._found:
            name = self._module.__name__
            lines = [
                f"the agents module {name}, {file}, line {line}: {text}"
                for file, line, text in sorted(self._found)
            ]
            raise StartupFailed("\n".join(lines))


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever its code raises
        raise StartupFailed(
            f"the agents module {name} cannot be imported: {type(error).__name__}: {_words(error)}{_cause(error)}"
        ) from error


def _defined(module: ModuleType, kind: type) -> list[Any]:
    """Return the public values of a kind that the module, or a part of it, defines; in their order."""
    found: dict[int, Any] = {}
    for name, each in vars(module).items():
        if isinstance(each, kind) and not name.startswith("_"):
            home = inspect.unwrap(each.function).__module__ if isinstance(each, Tool) else each.__module__
            if f"{home}.".startswith(f"{module.__name__}."):
                found[id(each)] = each  # once, by however many names
    return list(found.values())


def _is_agent(declared: type) -> bool:
    return issubclass(declared, Agent) or all(
        hasattr(declared, field) for field in ("name", "description", "run")
    )


def _words(error: BaseException) -> str:
    """Return what an error says; the validators of attrs put the attribute, the class and the value behind it."""
    return str(error.args[0] if type(error) in {TypeError, ValueError} and error.args else error)


def _cause(error: BaseException) -> str:
    """Return the place at fault in the module, or nothing where none of its code has run."""
    if isinstance(error, SyntaxError):
        return ""  # its own message has the file and the line
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_THEIRS)
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _place(declared: Any, module: ModuleType) -> tuple[str, int]:
    """Return the file and the line where an agent or a tool is declared; 0 where nobody knows the line."""
    run = inspect.getattr_static(declared, "run", None)
    source = inspect.unwrap(run.__func__ if isinstance(run, staticmethod) else declared)
    try:
        return str(inspect.getsourcefile(source)), inspect.getsourcelines(source)[1]
    except (OSError, TypeError):
        return str(module.__file__), 0
