"""The table of the audit trail, through the role that may append and read it, and do no more.

What is appended gets its number under a lock that is held until the COMMIT, so that numbers become visible in
their order: whoever reads on from a number misses nothing, also where two processes write.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  # attrs resolves it for those who inspect the class
from datetime import datetime  # noqa: TC003  # msgspec reads the annotations at run time
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec

from nurseries.postgres.scoped import Statement
from nurseries.postgres.statement import columns

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from app.store.owner import Owner
    from nurseries.postgres.scoped import Database

EXPIRE_ROWS: Final = 1000
_APPEND_LOCK: Final = 0x6E75727361756474  # "nursaudt"; advisory locks are numbered

_COLUMNS: Final = (
    "entry_id, occurred_at, last_at, count, kind, user_id, presented_by, session_id, connection_id,"
    " thread_id, run_id, address, details"
)


@attrs.frozen
class NewEntry:
    """An entry as it is written; the fields are the columns, in their order. `details` is JSON text."""

    entry_id: str
    occurred_at: datetime
    last_at: datetime
    count: int
    kind: str
    user_id: str | None
    presented_by: str | None
    session_id: str | None
    connection_id: str | None
    thread_id: str | None
    run_id: str | None
    address: str | None
    details: str


@attrs.frozen
class StoredEntry:
    """An entry as an administrator reads it; `id` is the cursor."""

    id: int
    occurred_at: datetime
    last_at: datetime
    count: int
    kind: str
    user_id: str | None
    presented_by: str | None
    session_id: str | None
    connection_id: str | None
    thread_id: str | None
    run_id: str | None
    address: str | None
    details: Mapping[str, Any]


@attrs.frozen
class Owned:
    """What an id names, in which thread if it is in one, and whose it is."""

    what: str
    id: str
    thread_id: str | None
    user_id: str


async def append(database: Database, entries: Sequence[NewEntry]) -> None:
    """Append all of them or none, in one round trip; those that are there already stay as they are."""
    await database.batch(
        [
            Statement("SELECT pg_advisory_xact_lock($1::bigint)::text", (_APPEND_LOCK,)),
            Statement(
                f"INSERT INTO audit ({_COLUMNS})"
                " SELECT entry_id, occurred_at, last_at, count, kind, user_id, presented_by, session_id,"
                " connection_id, thread_id, run_id, address, details::jsonb"
                " FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::int[], $5::text[], $6::uuid[],"
                " $7::uuid[], $8::uuid[], $9::uuid[], $10::uuid[], $11::uuid[], $12::text[], $13::text[])"
                f" WITH ORDINALITY AS new ({_COLUMNS}, position)"
                " ORDER BY position ON CONFLICT (entry_id) DO NOTHING",
                columns(entries),
            ),
        ]
    )


async def page(
    database: Database, after: int, limit: int, *, kind: str | None = None, user_id: str | None = None
) -> list[StoredEntry]:
    """Return up to `limit` entries after the number `after`, in order.

    Args:
        database: of the audit role.
        after: the cursor.
        limit: at most so many.
        kind: of this kind alone.
        user_id: about this user alone, be it whose thing it was or who came with it.
    """
    rows = await database.fetch(
        "SELECT id, occurred_at, last_at, count, kind, user_id::text, presented_by::text, session_id::text,"
        " connection_id::text, thread_id::text, run_id::text, address, details FROM audit"
        " WHERE id > $1::bigint AND ($3::text IS NULL OR kind = $3)"
        " AND ($4::uuid IS NULL OR user_id = $4::uuid OR presented_by = $4::uuid)"
        " ORDER BY id LIMIT $2::int",
        after,
        limit,
        kind,
        user_id,
    )
    return [StoredEntry(*row) for row in rows]


async def owners_of(database: Database, ids: Collection[str]) -> list[Owned]:
    """Return which of the ids name a thread, a run, a message or a file, and whose."""
    rows = await database.fetch(
        "SELECT 'thread', thread_id::text, thread_id::text, user_id::text FROM threads"
        " WHERE thread_id = ANY($1::uuid[])"
        " UNION ALL SELECT 'run', run_id::text, thread_id::text, user_id::text FROM runs"
        " WHERE run_id = ANY($1::uuid[])"
        " UNION ALL SELECT 'message', message_id::text, thread_id::text, user_id::text FROM messages"
        " WHERE message_id = ANY($1::uuid[])"
        " UNION ALL SELECT 'file', file_id::text, NULL, user_id::text FROM files WHERE file_id = ANY($1::uuid[])",
        list(ids),
    )
    return [Owned(*row) for row in rows]


async def expire(database: Database) -> int:
    """Have a bounded number of entries removed that are older than the owner keeps them; return how many went."""
    row = await database.fetch_one("SELECT expire_audit($1::int)", EXPIRE_ROWS)
    assert row is not None
    removed: int = row[0]
    return removed


async def keep_for(owner: Owner, days: float) -> None:
    """Set the age from which on entries are removed, in days. Only the owner of the database may."""
    await owner.fetch(
        "UPDATE audit_retention SET keep = make_interval(secs => $1) WHERE keep <> make_interval(secs => $1)",
        days * 86_400,
    )


def encode_details(details: Mapping[str, Any]) -> str:
    """Return details as JSON text."""
    return msgspec.json.encode(details).decode()
