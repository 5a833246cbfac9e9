"""Sessions, refresh tokens and tickets: every statement of the account service that proves who somebody is.

Each method is one unit of work and one round trip. What must happen once, such as using up a token, is
decided by one UPDATE of its row, so that of any number of callers at the same moment one wins. The time is
a parameter, because the service's clock decides what has expired.

Ending a session and telling every server of it (`CHANNEL`) commit together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from nurseries.postgres.scoped import Statement

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from nurseries.postgres.scoped import Database

CHANNEL: Final = "nurseries_sessions"
"""Notified with the id of each session that ends before its time, and why: `<session_id> <reason>`."""

_LIVE: Final = "s.revoked_at IS NULL AND s.expires_at > {now} AND u.disabled_at IS NULL"
OWNER: Final = "u.user_id::text, u.email, u.roles"

USED_TOKENS: Final = 4096
"""Used refresh tokens that a session keeps, to know their reuse: more than a client needs in its thirty days. Of
one that refreshes without end the oldest go; they are refused as unknown."""

REVOKED_SECONDS: Final = 3600.0
"""How long a session that was ended is kept: long enough to look at it, and not the month that it would live."""


@attrs.frozen
class LiveSession:
    """A session that has neither ended nor expired, of a user who is not disabled."""

    session_id: str
    user_id: str
    email: str
    roles: tuple[str, ...]
    expires_at: datetime


@attrs.frozen
class Revoked:
    """A session that this very call ended."""

    session_id: str
    user_id: str


class SessionStore:
    """The tables of the sessions, through a connection of the accounts role."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- sessions ------------------------------------------------------------------------------------

    async def open_session(  # noqa: PLR0913  # a row of each of two tables
        self,
        session_id: str,
        user_id: str,
        refresh_hash: bytes,
        expires_at: datetime,
        now: datetime,
        *,
        at_most: int,
        reason: str,
    ) -> tuple[LiveSession | None, list[Revoked]]:
        """Open a session with its first refresh token, and end the user's oldest beyond `at_most` for `reason`.

        FOR SHARE waits for a disabling that is under way, and makes a later one wait.

        Returns:
            The session, None when the user is disabled or gone; and those that were ended for it.
        """
        opened, ended = await self._database.batch(
            [
                Statement(
                    "WITH u AS ("  # a constant
                    "  SELECT * FROM users WHERE user_id = $2::uuid AND disabled_at IS NULL FOR SHARE"
                    "), s AS ("
                    "  INSERT INTO sessions (session_id, user_id, created_at, expires_at)"
                    "  SELECT $1::uuid, user_id, $5::timestamptz, $4::timestamptz FROM u"
                    "  RETURNING session_id, expires_at"
                    "), first AS ("
                    "  INSERT INTO refresh_tokens (token_hash, session_id, user_id, created_at, expires_at)"
                    "  SELECT $3::bytea, s.session_id, u.user_id, $5::timestamptz, s.expires_at FROM s, u"
                    f") SELECT s.session_id::text, {OWNER}, s.expires_at FROM s, u",
                    (session_id, user_id, refresh_hash, expires_at, now),
                ),
                Statement(
                    revoking(
                        "session_id IN (SELECT session_id FROM sessions WHERE user_id = $3::uuid"
                        "  AND revoked_at IS NULL AND expires_at > $1::timestamptz"
                        "  ORDER BY created_at DESC, session_id DESC OFFSET $4::int)"
                    ),
                    (now, reason, user_id, at_most),
                ),
            ]
        )
        return (_live_session(opened[0]) if opened else None), revoked_of(ended)

    async def live_session(self, session_id: str, now: datetime) -> LiveSession | None:
        """Return the session if it is live."""
        row = await self._database.fetch_one(
            f"SELECT s.session_id::text, {OWNER}, s.expires_at FROM sessions s JOIN users u USING (user_id)"  # constants
            f" WHERE s.session_id = $1::uuid AND {_LIVE.format(now='$2::timestamptz')}",
            session_id,
            now,
        )
        return None if row is None else _live_session(row)

    async def live_among(self, session_ids: Collection[str], now: datetime) -> set[str]:
        """Return those of the sessions that are live."""
        rows = await self._database.fetch(
            "SELECT s.session_id::text FROM sessions s JOIN users u USING (user_id)"  # constants
            f" WHERE s.session_id = ANY($1::uuid[]) AND {_LIVE.format(now='$2::timestamptz')}",
            list(session_ids),
            now,
        )
        return {session_id for (session_id,) in rows}

    async def revoke_session(self, session_id: str, reason: str, now: datetime) -> list[Revoked]:
        """End a session; empty when it had ended before."""
        return revoked_of(
            await self._database.fetch(revoking("session_id = $3::uuid"), now, reason, session_id)
        )

    # -- refresh tokens ------------------------------------------------------------------------------

    async def rotate(
        self, token_hash: bytes, successor_hash: bytes, reason: str, now: datetime
    ) -> tuple[LiveSession | None, list[Revoked]]:
        """Use up a refresh token and store its successor; a token that was used before ends its session.

        Returns:
            The session when the token was good, and the session that this call ended when it was not. Of
            several calls at once with one token the first gets the session. The others waited for its row,
            so their second statement sees the token used without their own successor being there.
        """
        rotated, revoked, _ = await self._database.batch(
            [
                Statement(
                    "WITH used AS ("  # constants
                    "  UPDATE refresh_tokens t SET used_at = $3::timestamptz FROM sessions s, users u"
                    "  WHERE t.token_hash = $1::bytea AND t.used_at IS NULL AND t.expires_at > $3::timestamptz"
                    "  AND s.session_id = t.session_id AND u.user_id = t.user_id"
                    f"  AND {_LIVE.format(now='$3::timestamptz')}"
                    f"  RETURNING s.session_id, {OWNER}, s.expires_at"
                    "), successor AS ("
                    "  INSERT INTO refresh_tokens (token_hash, session_id, user_id, created_at, expires_at)"
                    "  SELECT $2::bytea, session_id, user_id::uuid, $3::timestamptz, expires_at FROM used"
                    ") SELECT session_id::text, user_id, email, roles, expires_at FROM used",
                    (token_hash, successor_hash, now),
                ),
                Statement(
                    revoking(
                        "session_id = (SELECT session_id FROM refresh_tokens"
                        "  WHERE token_hash = $3::bytea AND used_at IS NOT NULL)"
                        " AND NOT EXISTS (SELECT FROM refresh_tokens WHERE token_hash = $4::bytea)"
                    ),
                    (now, reason, token_hash, successor_hash),
                ),
                Statement(
                    "DELETE FROM refresh_tokens WHERE token_hash IN (SELECT token_hash FROM refresh_tokens"
                    " WHERE used_at IS NOT NULL AND session_id ="
                    " (SELECT session_id FROM refresh_tokens WHERE token_hash = $1::bytea)"
                    " ORDER BY used_at DESC OFFSET $2::int)",
                    (successor_hash, USED_TOKENS),
                ),
            ]
        )
        return (_live_session(rotated[0]) if rotated else None), revoked_of(revoked)

    # -- tickets -------------------------------------------------------------------------------------

    async def add_ticket(
        self, ticket_hash: bytes, session_id: str, user_id: str, expires_at: datetime
    ) -> None:
        """Store a ticket of a session."""
        await self._database.fetch(
            "INSERT INTO tickets (ticket_hash, session_id, user_id, expires_at)"
            " VALUES ($1::bytea, $2::uuid, $3::uuid, $4::timestamptz)",
            ticket_hash,
            session_id,
            user_id,
            expires_at,
        )

    async def use_ticket(
        self, ticket_hash: bytes, now: datetime
    ) -> tuple[LiveSession | None, tuple[str, str] | None]:
        """Use up a ticket.

        Returns:
            Its session when the ticket was good; else, when it had been good once, the session and user
            that it was made for.
        """
        used, known = await self._database.batch(
            [
                Statement(
                    "UPDATE tickets t SET used_at = $2::timestamptz FROM sessions s, users u"  # constants
                    " WHERE t.ticket_hash = $1::bytea AND t.used_at IS NULL AND t.expires_at > $2::timestamptz"
                    " AND s.session_id = t.session_id AND u.user_id = t.user_id"
                    f" AND {_LIVE.format(now='$2::timestamptz')}"
                    f" RETURNING s.session_id::text, {OWNER}, s.expires_at",
                    (ticket_hash, now),
                ),
                Statement(
                    "SELECT session_id::text, user_id::text FROM tickets"
                    " WHERE ticket_hash = $1::bytea AND used_at IS NOT NULL",
                    (ticket_hash,),
                ),
            ]
        )
        if used:
            return _live_session(used[0]), None
        return None, (known[0][0], known[0][1]) if known else None

    # -- upkeep --------------------------------------------------------------------------------------

    async def remove_expired(self, now: datetime, limit: int) -> int:
        """Remove up to `limit` rows each of tickets and sessions that expired, and of sessions that were ended.

        A session's refresh tokens go with it. Returns how many rows of these went.
        """
        removed = await self._database.batch(
            [
                Statement(
                    "DELETE FROM tickets WHERE ticket_hash IN (SELECT ticket_hash FROM tickets"
                    " WHERE expires_at < $1::timestamptz ORDER BY expires_at LIMIT $2::int) RETURNING 1",
                    (now, limit),
                ),
                Statement(
                    "DELETE FROM sessions WHERE session_id IN (SELECT session_id FROM sessions"
                    " WHERE expires_at < $1::timestamptz ORDER BY expires_at LIMIT $2::int) RETURNING 1",
                    (now, limit),
                ),
                Statement(
                    "DELETE FROM sessions WHERE session_id IN (SELECT session_id FROM sessions"
                    " WHERE revoked_at < $1::timestamptz - make_interval(secs => $3)"
                    " ORDER BY revoked_at LIMIT $2::int) RETURNING 1",
                    (now, limit, REVOKED_SECONDS),
                ),
            ]
        )
        return sum(len(rows) for rows in removed)


def revoking(condition: str) -> str:
    """Return the statement that ends the live sessions with `condition`, $1 being the time and $2 the reason."""
    return (
        "WITH ended AS (UPDATE sessions SET revoked_at = $1::timestamptz, revoked_for = $2::text"  # constants
        f" WHERE revoked_at IS NULL AND {condition} RETURNING session_id, user_id)"
        " SELECT session_id::text, user_id::text,"
        f" pg_notify('{CHANNEL}', session_id || ' ' || $2::text)::text FROM ended"
    )


def revoked_of(rows: Sequence[Sequence[Any]]) -> list[Revoked]:
    """Return what a statement of `revoking` ended."""
    return [Revoked(session_id, user_id) for session_id, user_id, _ in rows]


def _live_session(row: Sequence[Any]) -> LiveSession:
    session_id, user_id, email, roles, expires_at = row
    return LiveSession(session_id, user_id, email, tuple(roles), expires_at)
