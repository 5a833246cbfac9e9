"""The account service: the one place where an identity comes from.

It acts through a database role of its own, which sees credentials and no conversation. Everything that
proves an identity is looked up when it is used, so that a logout, a reuse or a disabled user counts at
once, whatever the tokens themselves still say.
"""

from __future__ import annotations

import hmac
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

import trio

from app.accounts import emails
from app.accounts.identity import Identity
from app.accounts.login_guard import LoginGuard
from app.accounts.logins import Logins, Opened
from app.accounts.one_time import Ticket, digest, new_secret
from app.accounts.passwords import Passwords
from app.accounts.revocations import listen_for_revocations
from app.accounts.sessions import LiveSessions
from app.accounts.signin import SigninCodes
from app.accounts.tokens import AccessTokens, TokenPair
from app.accounts.users import Users
from app.audit.event import SecurityEvent, log_event
from app.errors import InvalidGrant, LoginFailed, LoginLimited, RegistrationClosed, Unauthenticated
from app.store.sessions import SessionStore
from app.store.users import UserStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app.accounts.settings import AccountSettings
    from app.audit.event import Audit, Kind
    from app.store.sessions import LiveSession
    from app.store.users import Account
    from nurseries.postgres.scoped import Database

_SWEEP_ROWS: Final = 1000


def _utc_now() -> datetime:
    return datetime.now(UTC)


class AccountService:
    """Users, logins and proofs of identity.

    Wherever an `address` may be given it is the client's, for the audit trail.

    Attributes:
        settings: as given.
        live: who is told when a session is revoked.
        users: what an administrator may do.
        codes: sign a user in without a password.
    """

    def __init__(  # noqa: PLR0913  # wired in one place
        self,
        database: Database,
        key: bytes,
        settings: AccountSettings,
        *,
        live: LiveSessions | None = None,
        audit: Audit = log_event,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Wire the service; nothing runs until a method is called.

        Args:
            database: of the accounts role.
            key: signs access tokens; `load_or_create_key` keeps one.
            settings: bounds and lifetimes.
            live: shared with the sockets of this process.
            audit: told of every security event.
            now: the clock, in UTC.
        """
        self.settings = settings
        self.live = LiveSessions() if live is None else live
        self._accounts = UserStore(database)
        self._sessions = SessionStore(database)
        self._tokens = AccessTokens(key, settings)
        self._passwords = Passwords(settings.hash_cost, waiters=settings.hash_waiters)
        self._guard = LoginGuard(
            failures=settings.login_failures,
            window=settings.login_window_seconds,
            keys=settings.login_keys,
        )
        self._pseudonyms = hmac.digest(key, b"accounts in the audit trail", "sha256")
        self._audit = audit
        self._now = now
        self._logins = Logins(
            store=self._sessions, tokens=self._tokens, settings=settings, live=self.live, audit=audit, now=now
        )
        self.users = Users(self._accounts, self._passwords, self.live, audit, now)
        self.codes = SigninCodes(self.users, self._accounts, self._sessions, settings, now)

    # -- what anybody may ask ------------------------------------------------------------------------

    async def register(self, email: str, password: str, *, address: str | None = None) -> str:
        """Make an account for whoever asks, and return its user id.

        Raises:
            RegistrationClosed, InvalidEmail, WeakPassword, EmailTaken, Busy
        """
        if not self.settings.registration:
            raise RegistrationClosed("new accounts are made by an administrator here")
        return await self.users.register(email, password, address=address)

    async def login(self, email: str, password: str, *, address: str) -> TokenPair:
        """Open a session. Its id is always a new one.

        An unknown user, a wrong password and a disabled user take the same time and give the same answer.

        Args:
            email: in any spelling.
            password: as typed.
            address: of the client; failures are counted for account and address together.

        Raises:
            LoginFailed, LoginLimited, Busy
        """
        key, account = emails.email_key(email), None
        try:
            with self._guard.attempt(key, address):
                account = await self._accounts.account(key)
                opened = await self._opened(account, password)
        except (LoginFailed, LoginLimited) as error:
            kind: Kind = "login_failed" if isinstance(error, LoginFailed) else "login_limited"
            user_id = None if account is None else account.user_id
            details = {"account": self._pseudonym(key)}
            self._audit(SecurityEvent(kind, user_id, address=address, details=details))
            raise
        self._audit(_of_session("login", opened.session, address))
        return opened.pair

    async def refresh(self, refresh_token: str, *, address: str | None = None) -> TokenPair:
        """Trade a refresh token for a new pair.

        Each works once. A second use, at the same moment or later, means that two hold it: the session
        ends, and with it the tokens of both (RFC 9700, 4.14.2).

        Raises:
            InvalidGrant
        """
        return await self._logins.renew(refresh_token, address=address)

    async def signin(self, code: str, *, address: str | None = None) -> TokenPair:
        """Trade a code of `codes` for the pair that a login gives. Each works once.

        Raises:
            InvalidGrant
        """
        session = await self._use(code, "signin", address)
        if session is None:
            raise InvalidGrant("the sign-in code is unknown, used or expired")
        opened = await self._logins.open(session.user_id)
        self._audit(_of_session("signin", opened.session, address))
        return opened.pair

    # -- proofs of identity --------------------------------------------------------------------------

    async def authenticate_bearer(self, token: str, *, address: str | None = None) -> Identity:
        """Return whom an access token stands for, now. Costs one query.

        Raises:
            Unauthenticated
        """
        now = self._now()
        claims = self._tokens.read(token, now)
        session = await self._sessions.live_session(claims.session_id, now)
        if session is None:
            raise Unauthenticated("the session has ended")
        if session.user_id != claims.user_id:
            self._audit(_mismatch(session, claims.user_id, address))
            raise Unauthenticated("the access token is not valid")
        return Identity.of(session, min(claims.expires_at, session.expires_at))

    async def authenticate_ticket(self, ticket: str, *, address: str | None = None) -> Identity:
        """Use up a ticket and return whom it stands for, until the end of its session.

        Raises:
            Unauthenticated
        """
        session = await self._use(ticket, "ticket", address)
        if session is None:
            raise Unauthenticated("the ticket is unknown, used or expired")
        return Identity.of(session, session.expires_at)

    async def authenticate_socket(
        self, *, bearer: str | None, ticket: str | None, address: str | None = None
    ) -> Identity:
        """Return who opens a socket, with an access token, a ticket, or both of one user.

        Raises:
            Unauthenticated
        """
        by_token = None if bearer is None else await self.authenticate_bearer(bearer, address=address)
        if ticket is None:
            if by_token is None:
                raise Unauthenticated("an access token or a ticket is needed")
            return by_token
        by_ticket = await self.authenticate_ticket(ticket, address=address)
        if by_token is not None and by_token.user_id != by_ticket.user_id:
            self._audit(_mismatch(by_ticket, by_token.user_id, address))
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
            if await self._sessions.live_session(identity.session_id, self._now()) is None:
                raise Unauthenticated("the session has ended")
            yield

    # -- what an identity may ask --------------------------------------------------------------------

    async def logout(self, identity: Identity, *, address: str | None = None) -> None:
        """End the session and close its sockets."""
        reason = "logged out"
        await self._sessions.revoke_session(identity.session_id, reason, self._now())
        self.live.revoke([identity.session_id], reason)
        self._audit(_of_session("logout", identity, address))

    async def ticket(self, identity: Identity) -> Ticket:
        """Return a new ticket of the session."""
        ticket, seconds = new_secret(), self.settings.ticket_seconds
        await self._sessions.add_ticket(
            digest("ticket", ticket),
            identity.session_id,
            identity.user_id,
            self._now() + timedelta(seconds=seconds),
        )
        return Ticket(ticket, seconds)

    # -- upkeep --------------------------------------------------------------------------------------

    async def listen_for_revocations(
        self, conninfo: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """End what is open for a session that another process revoked; `conninfo` is the accounts role's."""
        await listen_for_revocations(conninfo, self.live, self._sessions, self._now, task_status=task_status)

    async def remove_expired(self) -> bool:
        """Remove a bounded number of expired rows; True when there may be more. Forget failed logins of long ago."""
        self._guard.forget_expired()
        return await self._sessions.remove_expired(self._now(), _SWEEP_ROWS) >= _SWEEP_ROWS

    # -- inside --------------------------------------------------------------------------------------

    async def _opened(self, account: Account | None, password: str) -> Opened:
        good = await self._passwords.verify(account.password_hash if account else None, password)
        if account is None or not good:
            raise LoginFailed("email and password do not belong together")
        return await self._logins.open(account.user_id)

    def _pseudonym(self, email_key: str) -> str:
        """Return what tells tries for one account from those for another, to nobody without the server's key."""
        text = email_key.encode(errors="replace")
        return hmac.digest(self._pseudonyms, text, "sha256").hex()[:16]

    async def _use(
        self, secret: str, kind: Literal["ticket", "signin"], address: str | None
    ) -> LiveSession | None:
        session, spent = await self._sessions.use_ticket(digest(kind, secret), self._now())
        if spent is not None:
            session_id, user_id = spent
            reused: Final = "ticket_reused" if kind == "ticket" else "signin_code_reused"
            self._audit(SecurityEvent(reused, user_id, session_id=session_id, address=address))
        return session


def _of_session(kind: Kind, session: LiveSession | Identity, address: str | None) -> SecurityEvent:
    return SecurityEvent(kind, session.user_id, session_id=session.session_id, address=address)


def _mismatch(owner: LiveSession | Identity, presented_by: str, address: str | None) -> SecurityEvent:
    return SecurityEvent("credential_reused", owner.user_id, presented_by, owner.session_id, address=address)
