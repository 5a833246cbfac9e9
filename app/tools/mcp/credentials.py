"""Tokens of users for MCP servers: sealed for one user and one server, and opened in that user's requests only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from app.store import credentials as store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from nurseries.postgres.scoped import ScopedDatabase

KEY_BYTES: Final = 32
MAX_TOKEN: Final = 4096
_NONCE_BYTES: Final = 12  # what AES-GCM takes (NIST SP 800-38D); random, for far fewer than 2**32 tokens


class TokenVault:
    """Seals tokens with AES-256-GCM. Whose it is and for what is sealed with it, so a moved row opens for nobody.

    Args:
        key: `KEY_BYTES` random bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    async def store(self, database: ScopedDatabase, user_id: str, server: str, token: str) -> None:
        """Keep the user's token for a server, in place of one that was there."""
        await store.put(database, server, self.seal(user_id, server, token))

    async def token(self, database: ScopedDatabase, user_id: str, server: str) -> str | None:
        """Return the user's token for a server; None where there is none, or none that this user sealed."""
        sealed = await store.get(database, server)
        return None if sealed is None else self.unseal(user_id, server, sealed)

    def seal(self, user_id: str, server: str, token: str) -> bytes:
        """Return the token as it is stored."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher().encrypt(nonce, token.encode(), _bound_to(user_id, server))

    def unseal(self, user_id: str, server: str, sealed: bytes) -> str | None:
        """Return the token; None if it was sealed for somebody else, for another server, or with another key."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # not before it is needed

        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher().decrypt(nonce, rest, _bound_to(user_id, server)).decode()
        except InvalidTag:
            return None

    def _cipher(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # not before it is needed

        return AESGCM(self._key)


def _bound_to(user_id: str, server: str) -> bytes:
    return f"{user_id}:{server}".encode()
