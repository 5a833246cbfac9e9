"""One line of the trail, and what may become one."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # attrs resolves it for those who inspect the class
from typing import TYPE_CHECKING

import attrs

from app.audit.event import SecurityEvent  # noqa: TC001  # attrs resolves it for those who inspect the class
from app.store.audit import NewEntry, encode_details
from nurseries.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from app.store.audit import Owned


@attrs.frozen
class Entry:
    """One line of the trail.

    Attributes:
        event: what happened; of several, what they have in common.
        count: how often.
        occurred_at: when, or when first.
        last_at: when last.
        entry_id: tells a repeated writing from a second entry.
    """

    event: SecurityEvent
    count: int
    occurred_at: datetime
    last_at: datetime
    entry_id: str = attrs.field(factory=new_id)

    def row(self) -> NewEntry:
        """Return it as it is written."""
        event = self.event
        return NewEntry(
            entry_id=self.entry_id,
            occurred_at=self.occurred_at,
            last_at=self.last_at,
            count=self.count,
            kind=event.kind,
            user_id=event.user_id,
            presented_by=event.presented_by,
            session_id=event.session_id,
            connection_id=event.connection_id,
            thread_id=event.thread_id,
            run_id=event.run_id,
            address=event.address,
            details=encode_details(dict(event.details)),
        )


@attrs.frozen
class Suspicion:
    """Ids that somebody asked for in vain. Whose they are is looked up later, if they are anybody's.

    Attributes:
        event: a `foreign_id_asked` whose `presented_by` is who asked; what the look-up finds is added.
        ids: in the form of ours.
    """

    event: SecurityEvent
    ids: tuple[str, ...]

    def confirmed(self, owned: Mapping[str, Owned]) -> Iterator[SecurityEvent]:
        """Yield an event for each id that is somebody else's.

        Args:
            owned: what was found, by id.
        """
        event = self.event
        for id_ in self.ids:
            one = owned.get(id_)
            if one is not None and one.user_id != event.presented_by:
                yield attrs.evolve(
                    event,
                    user_id=one.user_id,
                    thread_id=one.thread_id,
                    run_id=one.id if one.what == "run" else None,
                    details={**event.details, "what": one.what, "id": one.id},
                )
