"""Identifiers: UUIDs of version 7, whose order is the order in which they were made (RFC 9562, 5.7)."""

from __future__ import annotations

import os
import re
import time
from typing import Final
from uuid import UUID

_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def uuid7() -> UUID:
    """Return a new UUID: 48 bits of Unix milliseconds, then 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return UUID(int=value)


def new_id() -> str:
    """Return a new identifier in its text form, as it stands in the protocol."""
    return str(uuid7())


def is_id(text: str) -> bool:
    """Say whether a text could be an identifier of ours."""
    return _ID.fullmatch(text) is not None
