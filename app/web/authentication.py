"""Who sent the current HTTP request. Every blueprint asks here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_plus

from quart import g, request

from app.errors import Forbidden, Unauthenticated

if TYPE_CHECKING:
    from quart import Quart

    from app.accounts.identity import Identity
    from app.accounts.service import AccountService

SECRET_PARAMETERS: Final = frozenset(
    {"access_token", "refresh_token", "token", "ticket", "code", "authorization", "password"}
)

_JWT: Final = re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+")  # a header that is a JSON object, claims, signature


def bearer_of(authorization: str | None) -> str | None:
    """Return the token of an Authorization header, or None without one (RFC 6750, 2.1).

    Raises:
        Unauthenticated: the header is of another scheme.
    """
    if authorization is None:
        return None
    scheme, _, token = authorization.strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("the Authorization header is not a Bearer token")
    return token.strip()


async def require_identity(service: AccountService, *, role: str | None = None) -> Identity:
    """Return who sent the current request.

    Args:
        service: judges the token.
        role: one that the user must have.

    Raises:
        Unauthenticated: no access token, or one that does not hold now.
        Forbidden: a user without the role.
    """
    # Several are one value, joined by a comma, which is nobody's token: never the first or the last of them.
    token = bearer_of(", ".join(request.headers.getlist("Authorization")) or None)
    if token is None:
        raise Unauthenticated("an access token is needed")
    identity = await service.authenticate_bearer(token, address=request.remote_addr)
    g.identity = identity
    if role is not None and role not in identity.roles:
        raise Forbidden(f"only for the role {role}")
    return identity


def current_identity() -> Identity | None:
    """Return who sent the current request, if that has been found out."""
    identity: Identity | None = g.get("identity")
    return identity


def has_secret_parameter(query_string: str) -> bool:
    """Say whether a query string names a token, or holds one under any name: it has been in too many logs already."""
    names = (unquote_plus(pair.partition("=")[0]) for pair in re.split("[&;]", query_string))
    if any(name.strip().lower() in SECRET_PARAMETERS for name in names):
        return True
    return _JWT.search(unquote_plus(query_string)) is not None


def refuse_query_tokens(app: Quart) -> None:
    """Answer 401 to every request of `app` with a token in its query string, on every route and on none."""

    async def refuse() -> None:
        if has_secret_parameter(request.query_string.decode("latin-1")):
            raise Unauthenticated("tokens are not taken from a query string")

    app.before_request(refuse)
