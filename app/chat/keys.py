"""Idempotency keys: what may be one, and how a repeat is told from another use of the same key."""

from __future__ import annotations

import hashlib
from typing import Final

from app.errors import InvalidField
from app.wire.codec import encode_json

MAX_KEY_LENGTH: Final = 255


def check_key(key: str | None, field: str) -> None:
    """Refuse a key that is empty, too long, or cannot be printed; None stands for no key.

    Raises:
        InvalidField: names `field`, where the client put the key.
    """
    if key is not None and not (0 < len(key) <= MAX_KEY_LENGTH and key.isprintable()):
        raise InvalidField(field, f"must be 1 to {MAX_KEY_LENGTH} printable characters")


def fingerprint(*asked: object) -> bytes:
    """Return the hash of what was asked for, which is stored beside the answer."""
    return hashlib.sha256(encode_json(asked)).digest()
