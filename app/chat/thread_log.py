"""What waits to be written of one thread: values that the journal and its writers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from app.store import journal as store
from nurseries.errors import Fault, OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nurseries.events import Event
    from nurseries.postgres.scoped import Database


class LogBroken(Fault):
    """The thread's events cannot be written; its run ends."""

    code = "log_broken"


@attrs.define(eq=False)
class Entry:
    """Events of one thread that are written together, and what is committed with them.

    When they are in the log, or never will be, `done` is set and everything in `then` is called. `again` says
    that an earlier try may have written them.
    """

    events: list[Event] = attrs.field(factory=list)
    records: list[store.Record] = attrs.field(factory=list)
    done: trio.Event = attrs.field(factory=trio.Event)
    then: list[Callable[[], None]] = attrs.field(factory=list)
    again: bool = False


@attrs.define(eq=False)
class ThreadLog:
    """The numbering of one thread while something runs in it.

    Attributes:
        last_seq: the last number that was given.
        uncommitted: events that have a number and are not in the log yet.
        latest: where the last of them is, until it is written.
        apart: what waits to be written apart from the other threads, None as a rule.
        broken: why nothing can be written any more.
        closing: it is to be forgotten when all is written.
    """

    user_id: str
    thread_id: str
    last_seq: int
    uncommitted: int = 0
    latest: Entry | None = None
    apart: list[Entry] | None = None
    broken: Exception | None = None
    closing: bool = False


async def write(database: Database, entries: Sequence[tuple[ThreadLog, Entry]]) -> None:
    """Write all of it or nothing, in one round trip. It may be repeated.

    Raises:
        NurseriesError: as `app.store.journal.write` does. Where nobody knows whether it was written, the entries
            remember that.
    """
    chunks = [_chunk(log, entry.events) for log, entry in entries if entry.events]
    records = [record for _, entry in entries for record in entry.records]
    try:
        await store.write(database, chunks, records, again=any(entry.again for _, entry in entries))
    except (Unavailable, OutcomeUnknown):
        for _, entry in entries:
            entry.again = True
        raise


def _chunk(log: ThreadLog, events: list[Event]) -> store.Chunk:
    lines = b"\n".join([event.data for event in events]).decode()
    return store.Chunk(log.thread_id, events[0].seq, events[-1].seq, log.user_id, lines)
