"""Sessions are opened and renewed here, and each way gives a pair of tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import attrs

from app.accounts.one_time import digest, new_secret
from app.accounts.tokens import AccessTokens, TokenPair
from app.audit.event import SecurityEvent
from app.errors import InvalidGrant, LoginFailed
from nurseries.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from app.accounts.sessions import LiveSessions
    from app.accounts.settings import AccountSettings
    from app.audit.event import Audit
    from app.store.sessions import LiveSession, SessionStore

TOO_MANY: Final = "too many sessions"
REUSED: Final = "refresh token used twice"


@attrs.frozen
class Opened:
    """A new session, and what its user holds of it."""

    session: LiveSession
    pair: TokenPair


@attrs.frozen(kw_only=True)
class Logins:
    """Opens sessions and trades refresh tokens.

    Attributes:
        store: of the sessions.
        tokens: signs access tokens.
        settings: lifetimes and bounds.
        live: told of each session that ends for it.
        audit: told what an honest client does not do.
        now: the clock.
    """

    store: SessionStore
    tokens: AccessTokens
    settings: AccountSettings
    live: LiveSessions
    audit: Audit
    now: Callable[[], datetime]

    async def open(self, user_id: str) -> Opened:
        """Open a session, always with a new id. A user who has too many loses the oldest.

        Raises:
            LoginFailed: the user is disabled.
        """
        now, refresh_token = self.now(), new_secret()
        session, displaced = await self.store.open_session(
            new_id(),
            user_id,
            digest("refresh", refresh_token),
            now + timedelta(seconds=self.settings.session_seconds),
            now,
            at_most=self.settings.sessions_per_user,
            reason=TOO_MANY,
        )
        for ended in displaced:
            self.live.revoke([ended.session_id], TOO_MANY)
            self.audit(SecurityEvent("sessions_limited", ended.user_id, session_id=ended.session_id))
        if session is None:
            raise LoginFailed("email and password do not belong together")
        return Opened(session, self._pair(session, refresh_token, now))

    async def renew(self, refresh_token: str, *, address: str | None) -> TokenPair:
        """Trade a refresh token for a new pair; one that was used before ends its session.

        Raises:
            InvalidGrant
        """
        now, successor = self.now(), new_secret()
        session, revoked = await self.store.rotate(
            digest("refresh", refresh_token), digest("refresh", successor), REUSED, now
        )
        for ended in revoked:
            self.live.revoke([ended.session_id], REUSED)
            self.audit(
                SecurityEvent(
                    "refresh_token_reused", ended.user_id, session_id=ended.session_id, address=address
                )
            )
        if session is None:
            raise InvalidGrant("the refresh token is unknown, used, expired or revoked")
        return self._pair(session, successor, now)

    def _pair(self, session: LiveSession, refresh_token: str, now: datetime) -> TokenPair:
        access_token, seconds = self.tokens.issue(
            session.user_id, session.session_id, now, session.expires_at
        )
        return TokenPair(access_token, refresh_token, seconds)
