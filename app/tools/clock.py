"""The tool that tells the time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import trio

from app.tools.schema import Parameters, Tool

if TYPE_CHECKING:
    from app.tools.schema import ToolContext


class ClockParameters(Parameters, frozen=True):
    """None: there is one time for everybody, UTC."""


async def clock(_context: ToolContext, _parameters: ClockParameters) -> dict[str, str]:
    """Return the time now, RFC 3339 in UTC, to the second."""
    await trio.lowlevel.checkpoint()
    return {"utc": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")}


CLOCK: Final = Tool("clock", "Tell the current date and time in UTC (RFC 3339).", ClockParameters, clock)
