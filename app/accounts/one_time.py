"""Secrets that are handed out once and looked up by their digest: refresh tokens, tickets, sign-in codes."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final, Literal

import attrs

SECRET_BYTES: Final = 32

Kind = Literal["refresh", "ticket", "signin"]


@attrs.frozen
class Ticket:
    """Opens one socket within `expires_in` seconds."""

    ticket: str
    expires_in: int


def new_secret() -> str:
    """Return 256 random bits as 43 characters that fit a URL's fragment, a header and a subprotocol."""
    return secrets.token_urlsafe(SECRET_BYTES)


def digest(kind: Kind, secret: str) -> bytes:
    """Return what is stored of `secret`.

    The kind goes into the digest, so that a secret of one kind is never found as one of another: a ticket
    opens a socket, and cannot be traded for tokens. A fast hash does, because nobody guesses 256 bits.
    """
    return hashlib.sha256(f"{kind}:{secret}".encode(errors="replace")).digest()
