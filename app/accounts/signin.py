"""Codes that sign a user in without a password, once: what a new server prints as a link."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from app.accounts import emails
from app.accounts.logins import TOO_MANY
from app.accounts.one_time import digest, new_secret
from app.errors import NotFound
from nurseries.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from app.accounts.settings import AccountSettings
    from app.accounts.users import Users
    from app.store.sessions import SessionStore
    from app.store.users import UserStore

FIRST_USER: Final = "admin@localhost"
ADMIN: Final = "admin"


class SigninCodes:
    """Makes the codes; `AccountService.signin` trades them."""

    def __init__(
        self,
        users: Users,
        accounts: UserStore,
        sessions: SessionStore,
        settings: AccountSettings,
        now: Callable[[], datetime],
    ) -> None:
        self._users = users
        self._accounts = accounts
        self._sessions = sessions
        self._settings = settings
        self._now = now

    async def for_first_user(self) -> str | None:
        """Return a code for a new administrator, or None where there is any user already.

        The user has no password: `nurseries serve` prints the code as a link, once.
        """
        if not await self._users.add_first(FIRST_USER, [ADMIN]):
            return None
        return await self.create(FIRST_USER)

    async def create(self, email: str) -> str:
        """Return a code that signs the user in once, within `signin_seconds`.

        It is traded by `POST /v1/auth/signin {code}`. In a link it stands in the fragment
        (`http://HOST:PORT/#signin=CODE`), which no browser sends to a server.

        Raises:
            NotFound
        """
        settings, now = self._settings, self._now()
        account = await self._accounts.account(emails.email_key(email))
        session = None
        code, expires_at = new_secret(), now + timedelta(seconds=settings.signin_seconds)
        if account is not None:
            # A ticket belongs to a session. This one has no tokens that anybody holds, and ends with the code.
            unheld = digest("refresh", new_secret())
            session, _ = await self._sessions.open_session(
                new_id(),
                account.user_id,
                unheld,
                expires_at,
                now,
                at_most=settings.sessions_per_user,
                reason=TOO_MANY,
            )
        if session is None:
            raise NotFound(f"no user {email!r} who may sign in")
        await self._sessions.add_ticket(
            digest("signin", code), session.session_id, session.user_id, expires_at
        )
        return code
