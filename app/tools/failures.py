"""How a tool call can fail, and what is told of it."""

from __future__ import annotations

from typing import Final

import trio

from app.tools.clip import clean_text
from nurseries.errors import CallerError, Fault, Unavailable

_MAX_ERROR: Final = 1000


class UnknownTool(CallerError):
    """There is no such tool, or this agent may not use it."""

    code = "unknown_tool"


class ToolTimeout(Fault):
    """A tool did not answer within its time limit."""

    code = "tool_timeout"


class ToolCrashed(Fault):
    """A tool raised what is not an `Exception`, such as SystemExit: its run ends, the server does not."""

    code = "tool_crashed"


TELLABLE: Final = (CallerError, Unavailable, ToolTimeout)
"""Errors whose message was written for whoever asked. Of others only the type is told: a message may quote anything."""


def tell(error: BaseException) -> str:
    """Return what the model and the user may read of an error."""
    text = str(error) if isinstance(error, TELLABLE) else f"the tool failed: {', '.join(_names(error))}"
    return clean_text(text[:_MAX_ERROR]) or type(error).__name__


def _names(error: BaseException) -> list[str]:
    if isinstance(error, BaseExceptionGroup):
        return sorted({name for part in error.exceptions for name in _names(part)})
    return [type(error).__name__]


def cancellation_of(error: BaseException) -> BaseException | None:
    """Return the part of `error` that cancels this task from outside, if it is being cancelled.

    A `Cancelled` that a tool kept and raised again belongs to no open scope and would climb to the root;
    it is the tool's crash.
    """
    if trio.current_effective_deadline() > -float("inf"):
        return None
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled)
    return error if isinstance(error, trio.Cancelled) else None
