"""Users: every statement of the account service about who exists, and with which roles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from app.store.sessions import OWNER, Revoked, revoked_of, revoking
from nurseries.postgres.scoped import Statement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from nurseries.postgres.scoped import Database


@attrs.frozen
class Account:
    """A user with what a login compares."""

    user_id: str
    email: str
    roles: tuple[str, ...]
    password_hash: str


class UserStore:
    """The table of the users, through a connection of the accounts role."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
            f"SELECT {OWNER}, u.password_hash FROM users u"  # a constant
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

    async def set_roles(self, email_key: str, roles: Sequence[str]) -> str | None:
        """Replace the user's roles and return the user id; None when there is no such user."""
        row = await self._database.fetch_one(
            "UPDATE users SET roles = $2::text[] WHERE email_key = $1 RETURNING user_id::text",
            email_key,
            roles,
        )
        return None if row is None else row[0]

    async def disable_user(
        self, email_key: str, reason: str, now: datetime
    ) -> tuple[str, list[Revoked]] | None:
        """Disable the user and end all their sessions; None when there is no such user.

        A login at the same moment has either read the row before, and then its session is seen by the
        second statement, or finds the user disabled: see `SessionStore.open_session`.
        """
        users, revoked = await self._database.batch(
            [
                Statement(
                    "UPDATE users SET disabled_at = coalesce(disabled_at, $2::timestamptz)"
                    " WHERE email_key = $1 RETURNING user_id::text",
                    (email_key, now),
                ),
                Statement(
                    revoking("user_id = (SELECT user_id FROM users WHERE email_key = $3)"),
                    (now, reason, email_key),
                ),
            ]
        )
        return (users[0][0], revoked_of(revoked)) if users else None
