"""Reading a thread's event log, as its user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import msgspec

from nurseries.events import Event

if TYPE_CHECKING:
    from nurseries.postgres.scoped import ScopedDatabase

PAGE_ROWS: Final = 64


@attrs.frozen
class _Routing:
    """The part of an envelope that routes it; the rest is passed on as it was written."""

    type: str
    seq: int
    user_id: str
    thread_id: str
    run_id: str
    delivery_checksum: str


_decode: Final = msgspec.json.Decoder(_Routing).decode


def last_seq_of(thread: str) -> str:
    """Return the SQL for the number of a thread's last event, 0 where it has none; `thread` is the SQL for its id.

    By the primary key, backwards: max(last_seq) would read the thread's whole log.
    """
    return (
        f"coalesce((SELECT last_seq FROM events WHERE events.thread_id = {thread}"
        " ORDER BY first_seq DESC LIMIT 1), 0)"
    )


_LAST_SEQ: Final = f"SELECT {last_seq_of('threads.thread_id')} FROM threads WHERE thread_id = $1::uuid"


def _event(line: str) -> Event:
    data = line.encode()
    routing = _decode(data)
    return Event(
        routing.user_id,
        routing.thread_id,
        routing.run_id,
        routing.seq,
        routing.type,
        routing.delivery_checksum,
        data,
    )


async def last_seq(database: ScopedDatabase, thread_id: str) -> int | None:
    """Return the number of the thread's last event; None where this user has no such thread."""
    row = await database.fetch_one(_LAST_SEQ, thread_id)
    return None if row is None else row[0]


async def read(database: ScopedDatabase, thread_id: str, after: int) -> list[Event]:
    """Return a page of the events after `after`, in order."""
    rows = await database.fetch(
        # The row that holds the event after the cursor, and those behind it: a range of the primary key, however
        # long the log before it is.
        "SELECT lines FROM events WHERE thread_id = $1::uuid AND last_seq > $2::bigint AND first_seq >= coalesce("
        "(SELECT first_seq FROM events WHERE thread_id = $1::uuid AND first_seq <= $2::bigint + 1"
        " ORDER BY first_seq DESC LIMIT 1), 0) ORDER BY first_seq LIMIT $3::int",
        thread_id,
        after,
        PAGE_ROWS,
    )
    return [event for (lines,) in rows for event in map(_event, lines.split("\n")) if event.seq > after]
