"""Who exists, and with which roles: what an administrator decides."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from app.accounts import emails
from app.accounts.passwords import NO_PASSWORD, Passwords, check_strength
from app.audit.event import SecurityEvent
from app.errors import EmailTaken, InvalidField, NotFound
from app.store.users import Account, UserStore
from nurseries.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from app.accounts.sessions import LiveSessions
    from app.audit.event import Audit

_ROLE: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")


class Users:
    """The accounts, by email address in any spelling. What is done to them is audited."""

    def __init__(
        self,
        store: UserStore,
        passwords: Passwords,
        live: LiveSessions,
        audit: Audit,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._passwords = passwords
        self._live = live
        self._audit = audit
        self._now = now

    async def register(self, email: str, password: str, *, address: str | None = None) -> str:
        """Make an account for somebody at `address` who asked for it, and return its user id.

        Raises:
            InvalidEmail, WeakPassword, EmailTaken, Busy
        """
        user_id = await self._make(email, password, ())
        self._audit(SecurityEvent("registered", user_id, address=address))
        return user_id

    async def add(self, email: str, password: str, roles: Sequence[str] = ()) -> str:
        """Make an account for somebody else, and return its user id.

        Raises:
            InvalidEmail, WeakPassword, InvalidField, EmailTaken, Busy
        """
        user_id = await self._make(email, password, roles)
        self._audit(SecurityEvent("user_added", user_id, details={"roles": " ".join(roles)}))
        return user_id

    async def add_first(self, email: str, roles: Sequence[str]) -> bool:
        """Make an account without a password, unless there is any account; say whether it was made."""
        if await self._store.any_user():
            return False
        try:
            user_id = await self._insert(email, NO_PASSWORD, roles)
        except EmailTaken:
            return False  # another server started at the same moment, and made it
        self._audit(SecurityEvent("user_added", user_id, details={"roles": " ".join(roles), "first": True}))
        return True

    async def disable(self, email: str) -> None:
        """Let the user do nothing more; their sockets close at once, on every server.

        Raises:
            NotFound
        """
        reason = "user disabled"
        disabled = await self._store.disable_user(emails.email_key(email), reason, self._now())
        if disabled is None:
            raise NotFound(f"no user {email!r}")
        user_id, revoked = disabled
        self._live.revoke((session.session_id for session in revoked), reason)
        self._audit(SecurityEvent("user_disabled", user_id, details={"sessions": len(revoked)}))

    async def set_roles(self, email: str, roles: Sequence[str]) -> None:
        """Replace the user's roles; they hold from the next request on.

        Raises:
            InvalidField, NotFound
        """
        checked = _checked_roles(roles)
        user_id = await self._store.set_roles(emails.email_key(email), checked)
        if user_id is None:
            raise NotFound(f"no user {email!r}")
        self._audit(SecurityEvent("roles_changed", user_id, details={"roles": " ".join(checked)}))

    async def _make(self, email: str, password: str, roles: Sequence[str]) -> str:
        emails.check_email(email)
        check_strength(password, email)
        return await self._insert(email, await self._passwords.hash(password), roles)

    async def _insert(self, email: str, password_hash: str, roles: Sequence[str]) -> str:
        account = Account(new_id(), email, tuple(_checked_roles(roles)), password_hash)
        if not await self._store.add_user(account, emails.email_key(email), self._now()):
            raise EmailTaken("this address has an account already")
        return account.user_id


def _checked_roles(roles: Sequence[str]) -> list[str]:
    for role in roles:
        if not _ROLE.fullmatch(role):
            raise InvalidField("roles", f"lower case letters, digits, '-' and '_', at most 32, not {role!r}")
    return sorted(set(roles))
