"""Identifiers: UUIDs of version 7, whose order is the order in which they were made (RFC 9562, 5.7)."""

from __future__ import annotations

import os
import time
from uuid import UUID


def uuid7() -> UUID:
    """Return a new UUID: 48 bits of Unix milliseconds, then 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return UUID(int=value)


def new_id() -> str:
    """Return a new identifier in its text form, as it stands in the protocol."""
    return str(uuid7())
