"""Equal events within a window are counted into one entry, so that a flood of them is two lines and not a million.

The first of its kind, users, login, address and thing is told at once and as it is. Those that follow within the
window are counted, and told at its end by what they have in common. What is remembered is bounded: beyond so many different
events only their kind tells them apart.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # attrs resolves it for those who inspect the class
from typing import Final

import attrs

from app.audit.entry import Entry
from app.audit.event import SecurityEvent
from nurseries.serving.rates import rate_key

_FIELDS: Final = tuple(
    field.name for field in attrs.fields(SecurityEvent) if field.name not in {"kind", "details"}
)
Key = tuple[str | None, ...]


@attrs.define
class _Repeats:
    """What came after the first: nothing yet, or `count` events."""

    event: SecurityEvent | None = None
    count: int = 0
    occurred_at: datetime | None = None
    last_at: datetime | None = None

    def add(self, event: SecurityEvent, now: datetime) -> None:
        self.event = event if self.event is None else common(self.event, event)
        self.occurred_at = self.occurred_at or now
        self.last_at = now
        self.count += 1

    def entry(self) -> Entry:
        assert self.event is not None
        assert self.occurred_at is not None
        assert self.last_at is not None
        return Entry(self.event, self.count, self.occurred_at, self.last_at)


class Folding:
    """Decides, synchronously, which event is told now and which is counted."""

    def __init__(self, different: int) -> None:
        self._different = different
        self._seen: dict[Key, _Repeats] = {}

    def __len__(self) -> int:
        """Return how many events are counted and not told yet."""
        return sum(repeats.count for repeats in self._seen.values())

    def add(self, event: SecurityEvent, now: datetime) -> Entry | None:
        """Return the entry that tells the event now, or None where it was counted."""
        key = _key_of(event)
        if key not in self._seen and len(self._seen) >= self._different:
            key = (event.kind,)
        repeats = self._seen.get(key)
        if repeats is None:
            self._seen[key] = _Repeats()
            return Entry(event, 1, now, now)
        repeats.add(event, now)
        return None

    def turn(self) -> list[Entry]:
        """Begin the next window; return the entries that tell what was counted in the last one.

        What goes on is counted on; what has stopped is forgotten.
        """
        entries = [repeats.entry() for repeats in self._seen.values() if repeats.count]
        self._seen = {key: _Repeats() for key, repeats in self._seen.items() if repeats.count}
        return entries


def _key_of(event: SecurityEvent) -> Key:
    """Return what makes events equal: what, about whom, in which login, from where, and for which thing of theirs."""
    network = event.address and rate_key(event.address)
    thing = str(event.details.get("id", ""))
    return event.kind, event.user_id, event.presented_by, event.session_id, network, thing


def common(one: SecurityEvent, other: SecurityEvent) -> SecurityEvent:
    """Return what two events of one kind have in common."""
    if one == other:
        return one
    same = {name: _same(getattr(one, name), getattr(other, name)) for name in _FIELDS}
    details = {name: value for name, value in one.details.items() if other.details.get(name) == value}
    return SecurityEvent(kind=one.kind, details=details, **same)


def _same(one: str | None, other: str | None) -> str | None:
    return one if one == other else None
