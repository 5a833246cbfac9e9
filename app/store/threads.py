"""Threads and their messages, as their user sees them."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # msgspec reads the annotations at run time
from typing import TYPE_CHECKING

import attrs

from app.store.events import last_seq_of
from app.store.keys import ALWAYS, once
from nurseries.postgres.scoped import Statement

if TYPE_CHECKING:
    from app.store.keys import Key
    from nurseries.postgres.scoped import ScopedDatabase


@attrs.frozen
class Thread:
    """A conversation; `last_seq` is the number of its last event."""

    thread_id: str
    title: str
    created_at: datetime
    last_seq: int


@attrs.frozen
class Message:
    """What one side said in one run."""

    message_id: str
    role: str
    content: str
    run_id: str
    created_at: datetime


_THREAD = f"thread_id::text, title, created_at, {last_seq_of('threads.thread_id')}"
_INSERT = "INSERT INTO threads (thread_id, user_id, title, created_at) SELECT $1::uuid, app_user_id(), $2, $3 FROM go RETURNING 1"
_CREATE = f"{ALWAYS} {_INSERT}"
_CREATE_ONCE = f"{once(4)} {_INSERT}"


async def create(database: ScopedDatabase, thread: Thread, key: Key | None) -> bool:
    """Add a thread; False if the key was used before, and then nothing is added."""
    params: tuple[object, ...] = (thread.thread_id, thread.title, thread.created_at)
    if key is None:
        return bool(await database.fetch(_CREATE, *params))
    return bool(await database.fetch(_CREATE_ONCE, *params, *attrs.astuple(key)))


async def get(database: ScopedDatabase, thread_id: str) -> Thread | None:
    """Return one thread."""
    row = await database.fetch_one(
        f"SELECT {_THREAD} FROM threads WHERE thread_id = $1::uuid", thread_id
    )  # a constant
    return None if row is None else Thread(*row)


async def page(database: ScopedDatabase, limit: int, before: str | None) -> list[Thread] | None:
    """Return up to `limit` threads made before the thread `before`, newest first. None: there is no such thread."""
    known, rows = await database.batch(
        [
            Statement(
                "SELECT 1 WHERE $1::uuid IS NULL OR EXISTS (SELECT 1 FROM threads WHERE thread_id = $1::uuid)",
                (before,),
            ),
            Statement(
                f"SELECT {_THREAD} FROM threads WHERE $1::uuid IS NULL OR thread_id < $1::uuid"  # a constant
                " ORDER BY thread_id DESC LIMIT $2::int",
                (before, limit),
            ),
        ]
    )
    return [Thread(*row) for row in rows] if known else None


async def rename(database: ScopedDatabase, thread_id: str, title: str) -> Thread | None:
    """Change the title."""
    row = await database.fetch_one(
        f"UPDATE threads SET title = $2 WHERE thread_id = $1::uuid RETURNING {_THREAD}",  # a constant
        thread_id,
        title,
    )
    return None if row is None else Thread(*row)


async def delete(database: ScopedDatabase, thread_id: str) -> bool:
    """Remove the thread with all that belongs to it."""
    row = await database.fetch_one("DELETE FROM threads WHERE thread_id = $1::uuid RETURNING 1", thread_id)
    return row is not None


async def messages(
    database: ScopedDatabase, thread_id: str, limit: int, before: str | None
) -> list[Message] | None:
    """Return the last `limit` messages before the message `before`, oldest first.

    None: there is no such thread, or no such message in it.
    """
    known, rows = await database.batch(
        [
            Statement(
                "SELECT 1 FROM threads WHERE thread_id = $1::uuid AND ($2::uuid IS NULL OR EXISTS"
                " (SELECT 1 FROM messages WHERE message_id = $2::uuid AND thread_id = $1::uuid))",
                (thread_id, before),
            ),
            Statement(
                "SELECT message_id::text, role, content, run_id::text, created_at FROM messages"
                " WHERE thread_id = $1::uuid AND ($2::uuid IS NULL OR position <"
                " (SELECT position FROM messages WHERE message_id = $2::uuid))"
                " ORDER BY position DESC LIMIT $3::int",
                (thread_id, before, limit),
            ),
        ]
    )
    return [Message(*row) for row in reversed(rows)] if known else None
