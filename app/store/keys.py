"""Idempotency keys: what was asked under a key, and what was answered, so that a repeat gets the same answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from nurseries.postgres.scoped import Database, ScopedDatabase


@attrs.frozen
class Key:
    """A key: what was asked, as a hash, and what was answered, as JSON text."""

    key: str
    fingerprint: bytes
    answer: str


ALWAYS: Final = "WITH go AS (SELECT 1)"
"""The beginning of a statement that inserts `FROM go`, without a key."""


def once(first: int) -> str:
    """Return the beginning of one that inserts unless its key was used before.

    Args:
        first: the number of the first of three parameters, which are the fields of a `Key`.
    """
    return (
        "WITH go AS (INSERT INTO idempotency_keys (user_id, key, fingerprint, answer)"
        f" VALUES (app_user_id(), ${first}, ${first + 1}, ${first + 2}::jsonb)"
        " ON CONFLICT DO NOTHING RETURNING 1)"
    )


async def stored_answer(database: ScopedDatabase, key: str) -> tuple[bytes, Any] | None:
    """Return the fingerprint and the answer stored under a key of the user's."""
    row = await database.fetch_one("SELECT fingerprint, answer FROM idempotency_keys WHERE key = $1", key)
    return None if row is None else (row[0], row[1])


async def remove_old(database: Database, age_seconds: float, limit: int) -> int:
    """Remove up to `limit` keys older than so many seconds, of all users; the account service may."""
    return await database.execute(
        "DELETE FROM idempotency_keys WHERE (user_id, key) IN"
        " (SELECT user_id, key FROM idempotency_keys"
        " WHERE created_at < now() - make_interval(secs => $1) ORDER BY created_at LIMIT $2::int)",
        age_seconds,
        limit,
    )
