"""Access tokens: JWTs of one fixed algorithm, made and read without I/O.

A token names its session; whether that session still lives is asked of the database by the service. No
header of a token chooses anything here: not the algorithm, not the key, not where a key would come from
(RFC 8725, 3.1 and 3.10).
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
import jwt

from app.errors import Unauthenticated
from app.store import secrets
from nurseries.ids import new_id

if TYPE_CHECKING:
    from app.accounts.settings import AccountSettings
    from app.store.owner import Owner

KEY_BYTES: Final = 32

_ALGORITHM: Final = "HS256"
_TYPE: Final = "access"
_LONGEST: Final = 2048  # characters; ours have some 500
_CHECKED_HERE: Final = MappingProxyType({"verify_exp": False, "verify_nbf": False, "verify_iat": False})


@attrs.frozen
class AccessClaims:
    """What a good access token says."""

    user_id: str
    session_id: str
    expires_at: datetime


@attrs.frozen
class TokenPair:
    """What a login, a refresh or a sign-in code is answered with. `expires_in` is of the access token, in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    token_type: str = "Bearer"  # noqa: S105  # the name of a scheme


async def load_or_create_key(owner: Owner) -> bytes:
    """Return the key that signs access tokens: made once, and kept where only the owner of the database reads it."""
    return await secrets.load_or_create(owner, "access_token_key", os.urandom(KEY_BYTES))


class AccessTokens:
    """Signs and verifies with one key of `KEY_BYTES` random bytes."""

    def __init__(self, key: bytes, settings: AccountSettings) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"the key needs {KEY_BYTES} bytes")
        self._key = key
        self._settings = settings

    def issue(self, user_id: str, session_id: str, now: datetime, session_ends: datetime) -> tuple[str, int]:
        """Return a token and the seconds that it lives: never longer than its session."""
        issued = int(now.timestamp())
        lives = min(self._settings.access_seconds, int(session_ends.timestamp()) - issued)
        claims = {
            "iss": self._settings.issuer,
            "aud": self._settings.audience,
            "sub": user_id,
            "sid": session_id,
            "jti": new_id(),
            "iat": issued,
            "nbf": issued,
            "exp": issued + lives,
            "typ": _TYPE,
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM), lives

    def read(self, token: str, now: datetime) -> AccessClaims:
        """Return what `token` says.

        Raises:
            Unauthenticated: it is not a token of ours, or not one for now.
        """
        if len(token) > _LONGEST:
            raise Unauthenticated("the access token is not valid")
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                # The times are compared below: with the service's clock, and as the integers we write.
                options=_CHECKED_HERE,  # type: ignore[arg-type]  # a plain mapping of what its TypedDict lists
            )
            return self._checked(claims, now.timestamp())
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            # Its header is parsed before its signature is checked, so whatever parsing can raise, anybody can cause.
            raise Unauthenticated("the access token is not valid") from error

    def _checked(self, claims: dict[str, Any], now: float) -> AccessClaims:
        times = claims["iat"], claims["nbf"], claims["exp"]
        names = claims["iss"], claims["aud"], claims["sub"], claims["sid"], claims["jti"], claims["typ"]
        if any(type(time) is not int for time in times) or any(type(name) is not str for name in names):
            raise TypeError("a claim of the wrong type")
        issued, not_before, expires = times
        leeway = self._settings.leeway_seconds
        if claims["typ"] != _TYPE or max(issued, not_before) > now + leeway or expires <= now - leeway:
            raise ValueError("a token of another type or time")
        return AccessClaims(
            user_id=str(UUID(claims["sub"])),
            session_id=str(UUID(claims["sid"])),
            expires_at=datetime.fromtimestamp(expires, UTC),
        )
