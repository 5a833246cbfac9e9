"""A call of a tool: what is asked for, and how it ended."""

from __future__ import annotations

from typing import Any, Protocol

import attrs


class Call(Protocol):
    """What a model asks for. `arguments` is whatever the model wrote, JSON decoded."""

    @property
    def call_id(self) -> str:
        """What its events and its result are known by."""
        ...

    @property
    def tool(self) -> str:
        """The name of the tool."""
        ...

    @property
    def arguments(self) -> object:
        """A JSON object, if the model is good."""
        ...


@attrs.frozen
class ToolResult:
    """How one call ended: a `result` if it is `ok`, else an `error` for the model and the user to read."""

    call_id: str
    tool: str
    ok: bool
    milliseconds: int
    result: Any = None
    error: str = ""

    def payload(self) -> dict[str, Any]:
        """Return the payload of `tool_completed`."""
        outcome = {"result": self.result} if self.ok else {"error": self.error}
        return {
            "call_id": self.call_id,
            "tool": self.tool,
            "ok": self.ok,
            "milliseconds": self.milliseconds,
        } | outcome
