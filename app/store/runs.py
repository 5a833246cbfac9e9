"""Runs, as their user sees them."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # msgspec reads the annotations at run time
from typing import TYPE_CHECKING, Any

import attrs

from app.store.events import last_seq_of
from app.store.keys import ALWAYS, once
from nurseries.postgres.scoped import Statement

if TYPE_CHECKING:
    from app.store.keys import Key
    from app.wire.messages import OnConflict, OnDisconnect
    from nurseries.postgres.scoped import ScopedDatabase


@attrs.frozen
class RunRow:
    """A run as the protocol shows it."""

    run_id: str
    thread_id: str
    status: str
    agent: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    output: str | None
    error_code: str | None
    error_message: str | None
    usage: dict[str, Any] | None


@attrs.frozen
class NewRun:
    """A run and the message that starts it, as they are accepted; `replaces` is the run that it cancels."""

    run_id: str
    thread_id: str
    agent: str
    message_id: str
    content: str
    client_id: str | None
    on_conflict: OnConflict
    on_disconnect: OnDisconnect
    replaces: str | None


_INSERT = """
run AS (
    INSERT INTO runs (run_id, thread_id, user_id, agent, status, client_id, on_conflict, on_disconnect, replaces)
    SELECT $1::uuid, $2::uuid, app_user_id(), $3, 'queued', $6, $7, $8, $9::uuid FROM go RETURNING 1
), message AS (
    INSERT INTO messages (message_id, thread_id, user_id, run_id, role, content)
    SELECT $4::uuid, $2::uuid, app_user_id(), $1::uuid, 'user', $5 FROM go RETURNING 1
)
SELECT (SELECT count(*) FROM run), (SELECT count(*) FROM message)
"""
_ACCEPT = f"{ALWAYS}, {_INSERT}"
_ACCEPT_ONCE = f"{once(10)}, {_INSERT}"
_LAST_SEQ = f"SELECT {last_seq_of('$1::uuid')}"


async def accept(database: ScopedDatabase, new: NewRun, key: Key | None) -> tuple[bool, int]:
    """Make a message and its run durable, once for each key, in one round trip.

    Returns:
        Whether it is new (False: the key was used before and nothing was written), and the number of the
        thread's last event.

    Raises:
        QueryFailed: a foreign key is violated, since this user has no such thread.
    """
    params: tuple[object, ...] = attrs.astuple(new)
    if key is None:
        insert = Statement(_ACCEPT, params)
    else:
        insert = Statement(_ACCEPT_ONCE, (*params, *attrs.astuple(key)))
    inserted, last_seq = await database.batch([insert, Statement(_LAST_SEQ, (new.thread_id,))])
    return inserted[0][0] == 1, last_seq[0][0]


async def get(database: ScopedDatabase, run_id: str) -> RunRow | None:
    """Return one run."""
    row = await database.fetch_one(
        "SELECT run_id::text, thread_id::text, status, agent, created_at, started_at, ended_at,"
        " output, error_code, error_message, usage FROM runs WHERE run_id = $1::uuid",
        run_id,
    )
    return None if row is None else RunRow(*row)


async def remove_messages(database: ScopedDatabase, run_id: str) -> None:
    """Remove what was said in a run, on both sides."""
    await database.fetch("DELETE FROM messages WHERE run_id = $1::uuid", run_id)
