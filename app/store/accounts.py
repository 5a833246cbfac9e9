"""Users, their sessions, refresh tokens and tickets: every statement of the account service.

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
_OWNER: Final = "u.user_id::text, u.email, u.roles"


@attrs.frozen
class Account:
    """A user with what a login compares."""

    user_id: str
    email: str
    roles: tuple[str, ...]
    password_hash: str


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


class AccountStore:
    """The tables of the accounts, through a connection of the accounts role."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- users ---------------------------------------------------------------------------------------

    async def add_user(self, account: Account, email_key: str, now: datetime) -> bool:
        """Add a user; False when the address is taken."""
        rows = await self._database.fetch(
            "INSERT INTO users (user_id, email, email_key, password_hash, roles, created_at)"
            " VALUES ($1::uuid, $2, $3, $4, $5::text[], $6::timestamptz)"
            " ON CONFLICT (email_key) DO NOTHING RETURNING user_id",
            account.user_id,
            account.email,
            email_key,
            account.password_hash,
            account.roles,
            now,
        )
        return bool(rows)

    async def account(self, email_key: str) -> Account | None:
        """Return the account with this address."""
        row = await self._database.fetch_one(
            f"SELECT {_OWNER}, u.password_hash FROM users u"  # a constant
            " WHERE u.email_key = $1",
            email_key,
        )
        if row is None:
            return None
        user_id, email, roles, password_hash = row
        return Account(user_id, email, tuple(roles), password_hash)

    async def any_user(self) -> bool:
        """Say whether there is any account."""
        return await self._database.fetch_one("SELECT FROM users LIMIT 1") is not None

    async def set_roles(self, email_key: str, roles: Sequence[str]) -> bool:
        """Replace the user's roles; False when there is no such user."""
        rows = await self._database.fetch(
            "UPDATE users SET roles = $2::text[] WHERE email_key = $1 RETURNING user_id",
            email_key,
            roles,
        )
        return bool(rows)

    async def disable_user(self, email_key: str, reason: str, now: datetime) -> list[Revoked] | None:
        """Disable the user and end all their sessions; None when there is no such user.

        A login at the same moment has either read the row before, and then its session is seen by the
        second statement, or finds the user disabled: see `open_session`.
        """
        users, revoked = await self._database.batch(
            [
                Statement(
                    "UPDATE users SET disabled_at = coalesce(disabled_at, $2::timestamptz)"
                    " WHERE email_key = $1 RETURNING user_id",
                    (email_key, now),
                ),
                Statement(
                    _revoking("user_id = (SELECT user_id FROM users WHERE email_key = $3)"),
                    (now, reason, email_key),
                ),
            ]
        )
        return _revoked(revoked) if users else None

    # -- sessions ------------------------------------------------------------------------------------

    async def open_session(
        self, session_id: str, user_id: str, refresh_hash: bytes, expires_at: datetime, now: datetime
    ) -> LiveSession | None:
        """Open a session with its first refresh token; None when the user is disabled or gone.

        FOR SHARE waits for a disabling that is under way, and makes a later one wait.
        """
        row = await self._database.fetch_one(
            "WITH u AS ("  # a constant
            "  SELECT * FROM users WHERE user_id = $2::uuid AND disabled_at IS NULL FOR SHARE"
            "), s AS ("
            "  INSERT INTO sessions (session_id, user_id, created_at, expires_at)"
            "  SELECT $1::uuid, user_id, $5::timestamptz, $4::timestamptz FROM u"
            "  RETURNING session_id, expires_at"
            "), first AS ("
            "  INSERT INTO refresh_tokens (token_hash, session_id, user_id, created_at, expires_at)"
            "  SELECT $3::bytea, s.session_id, u.user_id, $5::timestamptz, s.expires_at FROM s, u"
            f") SELECT s.session_id::text, {_OWNER}, s.expires_at FROM s, u",
            session_id,
            user_id,
            refresh_hash,
            expires_at,
            now,
        )
        return None if row is None else _live_session(row)

    async def live_session(self, session_id: str, now: datetime) -> LiveSession | None:
        """Return the session if it is live."""
        row = await self._database.fetch_one(
            f"SELECT s.session_id::text, {_OWNER}, s.expires_at FROM sessions s JOIN users u USING (user_id)"  # constants
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
        return _revoked(
            await self._database.fetch(_revoking("session_id = $3::uuid"), now, reason, session_id)
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
        rotated, revoked = await self._database.batch(
            [
                Statement(
                    "WITH used AS ("  # constants
                    "  UPDATE refresh_tokens t SET used_at = $3::timestamptz FROM sessions s, users u"
                    "  WHERE t.token_hash = $1::bytea AND t.used_at IS NULL AND t.expires_at > $3::timestamptz"
                    "  AND s.session_id = t.session_id AND u.user_id = t.user_id"
                    f"  AND {_LIVE.format(now='$3::timestamptz')}"
                    f"  RETURNING s.session_id, {_OWNER}, s.expires_at"
                    "), successor AS ("
                    "  INSERT INTO refresh_tokens (token_hash, session_id, user_id, created_at, expires_at)"
                    "  SELECT $2::bytea, session_id, user_id::uuid, $3::timestamptz, expires_at FROM used"
                    ") SELECT session_id::text, user_id, email, roles, expires_at FROM used",
                    (token_hash, successor_hash, now),
                ),
                Statement(
                    _revoking(
                        "session_id = (SELECT session_id FROM refresh_tokens"
                        "  WHERE token_hash = $3::bytea AND used_at IS NOT NULL)"
                        " AND NOT EXISTS (SELECT FROM refresh_tokens WHERE token_hash = $4::bytea)"
                    ),
                    (now, reason, token_hash, successor_hash),
                ),
            ]
        )
        return (_live_session(rotated[0]) if rotated else None), _revoked(revoked)

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
                    f" RETURNING s.session_id::text, {_OWNER}, s.expires_at",
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
        """Remove up to `limit` rows each of expired tickets and sessions; return how many went.

        A session's refresh tokens, used ones too, stay as long as it does: a reuse is known by them.
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
            ]
        )
        return sum(len(rows) for rows in removed)


def _revoking(condition: str) -> str:
    """Return the statement that ends the live sessions with `condition`, $1 being the time and $2 the reason."""
    return (
        "WITH ended AS (UPDATE sessions SET revoked_at = $1::timestamptz, revoked_for = $2::text"  # constants
        f" WHERE revoked_at IS NULL AND {condition} RETURNING session_id, user_id)"
        " SELECT session_id::text, user_id::text,"
        f" pg_notify('{CHANNEL}', session_id || ' ' || $2::text)::text FROM ended"
    )


def _revoked(rows: Sequence[Sequence[Any]]) -> list[Revoked]:
    return [Revoked(session_id, user_id) for session_id, user_id, _ in rows]


def _live_session(row: Sequence[Any]) -> LiveSession:
    session_id, user_id, email, roles, expires_at = row
    return LiveSession(session_id, user_id, email, tuple(roles), expires_at)
