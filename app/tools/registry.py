"""All tools of a server: filled at startup, then frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from app.tools.schema import Tool


class ToolRegistry:
    """Tools by name. Tools are stateless values, so that requests may share them."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        self._frozen = False
        for tool in tools:
            self.register(tool)

    def register(self, tool: Tool) -> None:
        """Add a tool.

        Raises:
            ValueError: the name is taken.
            RuntimeError: the server has started.
        """
        if self._frozen:
            raise RuntimeError(f"tool {tool.name!r}: tools are registered at startup only")
        if tool.name in self._tools:
            raise ValueError(f"tool {tool.name!r} is registered already")
        tool.describe()  # a parameter type without a JSON schema fails at startup, not in a run
        self._tools[tool.name] = tool

    def freeze(self) -> None:
        """Take no more tools."""
        self._frozen = True

    def select(self, names: Iterable[str]) -> tuple[Tool, ...]:
        """Return the named tools, in the order of the names.

        Raises:
            ValueError: there is no such tool.
        """
        names = tuple(names)
        if missing := [name for name in names if name not in self._tools]:
            raise ValueError(f"no such tool: {', '.join(map(repr, missing))}")
        return tuple(self._tools[name] for name in names)
