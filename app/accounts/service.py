"""The account service: the one place where an identity comes from.

It acts through a database role of its own, which sees credentials and no conversation. Everything that
proves an identity is looked up when it is used, so that a logout, a reuse or a disabled user counts at
once, whatever the tokens themselves still say.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

import trio

from app.accounts import emails
from app.accounts.audit import SecurityEvent, log_event
from app.accounts.identity import Identity
from app.accounts.login_guard import LoginGuard
from app.accounts.one_time import Ticket, digest, new_secret
from app.accounts.passwords import Passwords
from app.accounts.revocations import listen_for_revocations
from app.accounts.sessions import LiveSessions
from app.accounts.tokens import AccessTokens, TokenPair
from app.accounts.users import Users
from app.errors import InvalidGrant, LoginFailed, NotFound, RegistrationClosed, Unauthenticated
from app.store.accounts import AccountStore
from nurseries.ids import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app.accounts.settings import AccountSettings
    from app.store.accounts import LiveSession
    from nurseries.postgres.scoped import Database

FIRST_USER: Final = "admin@localhost"
ADMIN: Final = "admin"

_SWEEP_ROWS: Final = 1000


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AccountService:
    """Users, logins and proofs of identity.

    Attributes:
        settings: as given.
        live: who is told when a session is revoked.
        users: what an administrator may do.
    """

    def __init__(  # noqa: PLR0913  # wired in one place
        self,
        database: Database,
        key: bytes,
        settings: AccountSettings,
        *,
        live: LiveSessions | None = None,
        audit: Callable[[SecurityEvent], None] = log_event,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Wire the service; nothing runs until a method is called.

        Args:
            database: of the accounts role.
            key: signs access tokens; `load_or_create_key` keeps one.
            settings: bounds and lifetimes.
            live: shared with the sockets of this process.
            audit: told of every security event; synchronous, must not raise.
            now: the clock, in UTC.
        """
        self.settings = settings
        self.live = LiveSessions() if live is None else live
        self._store = AccountStore(database)
        self._tokens = AccessTokens(key, settings)
        self._passwords = Passwords(settings.hash_cost, waiters=settings.hash_waiters)
        self._guard = LoginGuard(
            failures=settings.login_failures,
            window=settings.login_window_seconds,
            keys=settings.login_keys,
        )
        self._audit = audit
        self._now = now
        self.users = Users(self._store, self._passwords, self.live, now)

    # -- what anybody may ask ------------------------------------------------------------------------

    async def register(self, email: str, password: str) -> str:
        """Make an account for whoever asks, and return its user id.

        Raises:
            RegistrationClosed, InvalidEmail, WeakPassword, EmailTaken, Busy
        """
        if not self.settings.registration:
            raise RegistrationClosed("new accounts are made by an administrator here")
        return await self.users.add(email, password)

    async def login(self, email: str, password: str, *, address: str) -> TokenPair:
        """Open a session. Its id is always a new one.

        An unknown user, a wrong password and a disabled user take the same time and give the same answer.

        Args:
            email: in any spelling.
            password: as typed.
            address: of the client; failures are counted for account and address together.

        Raises:
            LoginFailed, RateLimited, Busy
        """
        key = emails.email_key(email)
        with self._guard.attempt(key, address):
            account = await self._store.account(key)
            good = await self._passwords.verify(account.password_hash if account else None, password)
            if account is None or not good:
                raise LoginFailed("email and password do not belong together")
            return await self._open(account.user_id)

    async def refresh(self, refresh_token: str) -> TokenPair:
        """Trade a refresh token for a new pair.

        Each works once. A second use, at the same moment or later, means that two hold it: the session
        ends, and with it the tokens of both (RFC 9700, 4.14.2).

        Raises:
            InvalidGrant
        """
        now, successor, reason = self._now(), new_secret(), "refresh token used twice"
        session, revoked = await self._store.rotate(
            digest("refresh", refresh_token), digest("refresh", successor), reason, now
        )
        for ended in revoked:
            self.live.revoke([ended.session_id], reason)
            self._audit(SecurityEvent("refresh_token_reused", ended.user_id, ended.session_id))
        if session is None:
            raise InvalidGrant("the refresh token is unknown, used, expired or revoked")
        return self._pair(session, successor, now)

    async def signin(self, code: str) -> TokenPair:
        """Trade a code of `create_signin_code` for the pair that a login gives. Each works once.

        Raises:
            InvalidGrant
        """
        session = await self._use(code, "signin")
        if session is None:
            raise InvalidGrant("the sign-in code is unknown, used or expired")
        return await self._open(session.user_id)

    # -- proofs of identity --------------------------------------------------------------------------

    async def authenticate_bearer(self, token: str) -> Identity:
        """Return whom an access token stands for, now. Costs one query.

        Raises:
            Unauthenticated
        """
        now = self._now()
        claims = self._tokens.read(token, now)
        session = await self._store.live_session(claims.session_id, now)
        if session is None:
            raise Unauthenticated("the session has ended")
        if session.user_id != claims.user_id:
            self._audit(_mismatch(session, claims.user_id))
            raise Unauthenticated("the access token is not valid")
        return _identity(session, min(claims.expires_at, session.expires_at))

    async def authenticate_ticket(self, ticket: str) -> Identity:
        """Use up a ticket and return whom it stands for, until the end of its session.

        Raises:
            Unauthenticated
        """
        session = await self._use(ticket, "ticket")
        if session is None:
            raise Unauthenticated("the ticket is unknown, used or expired")
        return _identity(session, session.expires_at)

    async def authenticate_socket(self, *, bearer: str | None, ticket: str | None) -> Identity:
        """Return who opens a socket, with an access token, a ticket, or both of one user.

        Raises:
            Unauthenticated
        """
        by_token = None if bearer is None else await self.authenticate_bearer(bearer)
        if ticket is None:
            if by_token is None:
                raise Unauthenticated("an access token or a ticket is needed")
            return by_token
        by_ticket = await self.authenticate_ticket(ticket)
        if by_token is not None and by_token.user_id != by_ticket.user_id:
            self._audit(_mismatch(by_ticket, by_token.user_id))
            raise Unauthenticated("the ticket was made for somebody else")
        return by_token or by_ticket

    @asynccontextmanager
    async def watching(self, identity: Identity, on_revoked: Callable[[str], None]) -> AsyncIterator[None]:
        """Call `on_revoked` with the reason if the identity's session ends during the body of the block.

        It is called at most a few times, synchronously; `LiveSessions.watch` says what it may do. First
        the watch is set and then the database is asked, so that no session ends between its check and
        its watch unseen.

        Raises:
            Unauthenticated: it had ended already.
        """
        with self.live.watch(identity.session_id, on_revoked):
            if await self._store.live_session(identity.session_id, self._now()) is None:
                raise Unauthenticated("the session has ended")
            yield

    # -- what an identity may ask --------------------------------------------------------------------

    async def logout(self, identity: Identity) -> None:
        """End the session and close its sockets."""
        reason = "logged out"
        await self._store.revoke_session(identity.session_id, reason, self._now())
        self.live.revoke([identity.session_id], reason)

    async def ticket(self, identity: Identity) -> Ticket:
        """Return a new ticket of the session."""
        ticket, seconds = new_secret(), self.settings.ticket_seconds
        await self._store.add_ticket(
            digest("ticket", ticket), identity.session_id, identity.user_id, self._in(seconds)
        )
        return Ticket(ticket, seconds)

    # -- signing in without a password ----------------------------------------------------------------

    async def create_first_user(self) -> str | None:
        """Return a sign-in code for a new administrator, or None where there is any user already.

        The user has no password: `nurseries serve` prints the code as a link, once.
        """
        if not await self.users.add_first(FIRST_USER, [ADMIN]):
            return None
        return await self.create_signin_code(FIRST_USER)

    async def create_signin_code(self, email: str) -> str:
        """Return a code that signs the user in once, within `signin_seconds`.

        It is traded by `POST /v1/auth/signin {code}`. In a link it stands in the fragment
        (`http://HOST:PORT/#signin=CODE`), which no browser sends to a server.

        Raises:
            NotFound
        """
        account = await self._store.account(emails.email_key(email))
        code, now, expires_at = new_secret(), self._now(), self._in(self.settings.signin_seconds)
        # A ticket belongs to a session. This one has no tokens that anybody holds, and ends with the code.
        session_id = new_id()
        unheld = digest("refresh", new_secret())
        if account is None or not await self._store.open_session(
            session_id, account.user_id, unheld, expires_at, now
        ):
            raise NotFound(f"no user {email!r} who may sign in")
        await self._store.add_ticket(digest("signin", code), session_id, account.user_id, expires_at)
        return code

    # -- upkeep --------------------------------------------------------------------------------------

    async def listen_for_revocations(
        self, conninfo: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """End what is open for a session that another process revoked; `conninfo` is the accounts role's."""
        await listen_for_revocations(conninfo, self.live, self._store, self._now, task_status=task_status)

    async def remove_expired(self) -> bool:
        """Remove a bounded number of expired rows; True when there may be more."""
        return await self._store.remove_expired(self._now(), _SWEEP_ROWS) >= _SWEEP_ROWS

    # -- inside --------------------------------------------------------------------------------------

    async def _open(self, user_id: str) -> TokenPair:
        now, refresh_token = self._now(), new_secret()
        session = await self._store.open_session(
            new_id(), user_id, digest("refresh", refresh_token), self._in(self.settings.session_seconds), now
        )
        if session is None:  # the user is disabled
            raise LoginFailed("email and password do not belong together")
        return self._pair(session, refresh_token, now)

    def _pair(self, session: LiveSession, refresh_token: str, now: datetime) -> TokenPair:
        access_token, seconds = self._tokens.issue(
            session.user_id, session.session_id, now, session.expires_at
        )
        return TokenPair(access_token, refresh_token, seconds)

    async def _use(self, secret: str, kind: Literal["ticket", "signin"]) -> LiveSession | None:
        session, spent = await self._store.use_ticket(digest(kind, secret), self._now())
        if spent is not None:
            session_id, user_id = spent
            event = "ticket_reused" if kind == "ticket" else "signin_code_reused"
            self._audit(SecurityEvent(event, user_id, session_id))
        return session

    def _in(self, seconds: float) -> datetime:
        return self._now() + timedelta(seconds=seconds)


def _identity(session: LiveSession, expires_at: datetime) -> Identity:
    return Identity(session.user_id, session.session_id, expires_at, session.roles, session.email)


def _mismatch(owner: LiveSession | Identity, presented_by: str) -> SecurityEvent:
    return SecurityEvent("credential_mismatch", owner.user_id, owner.session_id, presented_by)
