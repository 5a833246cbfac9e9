"""Events of an agent's own making."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from app.tools.clip import clip

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from nurseries.events import Emitter

MAX_TYPE: Final = 64
MAX_BYTES: Final = 64 * 1024
_TYPE: Final = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")


class AgentEvents:
    """Says what happens in one request, to its user alone.

    The protocol's own events tell clients how a run stands, so only the engine sends them. An agent's own are
    told from them, also from those of later versions, by the dot in their type: `forecast.ready`.
    """

    __slots__ = ("_emitter",)

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter

    async def emit(self, event_type: str, payload: Mapping[str, Any]) -> int:
        """Add one event to the thread's log, and return its number there.

        Args:
            event_type: words of lower case letters, digits and `_`, with dots between them; at most 64 characters.
            payload: JSON values, attrs or msgspec objects; at most about 64 KiB.

        Raises:
            ValueError: the type is not an agent's to choose, or the payload is too large.
            TypeError: the payload has no JSON form.
            RequestEnded: the request has ended.
        """
        if not _TYPE.fullmatch(event_type) or len(event_type) > MAX_TYPE:
            raise ValueError(
                f"an agent's own event has a type like `forecast.ready`, not {event_type[:MAX_TYPE]!r}"
            )
        clipped = clip(payload, MAX_BYTES)
        if clipped.truncated:
            raise ValueError(f"{event_type}: larger than {MAX_BYTES} bytes, or too deep")
        if not isinstance(clipped.value, dict):
            raise TypeError(f"{event_type}: the payload must be a mapping")
        return (await self._emitter.emit(event_type, clipped.value)).seq
