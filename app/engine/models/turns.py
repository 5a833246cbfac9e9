"""What turns are to every provider: names of calls that it accepts, and results as text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from app.engine.model import ModelTurn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.engine.model import Turn
    from app.tools.calls import ToolResult

_ACCEPTED: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def call_names(turns: Sequence[Turn]) -> dict[int, list[str]]:
    """Return, by the position of each turn with calls, the names under which its calls are sent.

    A call keeps the name that its model gave it, if no other call has it and every provider accepts it: a
    conversation may go from one provider to the next. Others get a name of nine letters and digits, which is what
    the strictest of them asks for.
    """
    taken: set[str] = set()
    names: dict[int, list[str]] = {}
    for position, turn in enumerate(turns):
        if not isinstance(turn, ModelTurn) or not turn.calls:
            continue
        names[position] = []
        for call in turn.calls:
            name = call.call_id
            if name in taken or not _ACCEPTED.fullmatch(name):
                name = f"call{len(taken):05d}"
            taken.add(name)
            names[position].append(name)
    return names


def result_text(result: ToolResult) -> str:
    """Return what the model reads of a result."""
    if not result.ok:
        return f"Error: {result.error}"
    return result.result if isinstance(result.result, str) else msgspec.json.encode(result.result).decode()
