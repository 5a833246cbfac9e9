"""The `Idempotency-Key` header: the same key and body get the stored answer, another body is refused."""

from __future__ import annotations

import hashlib

from quart import request

from app.chat.runs import MAX_KEY_LENGTH
from app.errors import InvalidField
from app.wire.codec import encode_json


def idempotency_key() -> str | None:
    """Return the key of the current HTTP request, if it has one.

    Raises:
        InvalidField: it is empty, too long, or cannot be printed.
    """
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= MAX_KEY_LENGTH and key.isprintable()):
        raise InvalidField("Idempotency-Key", f"must be 1 to {MAX_KEY_LENGTH} printable characters")
    return key


def request_fingerprint(*asked: object) -> bytes:
    """Return the hash of what was asked for."""
    return hashlib.sha256(encode_json(asked)).digest()
