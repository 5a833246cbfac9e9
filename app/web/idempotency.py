"""The `Idempotency-Key` header: the same key and body get the stored answer, another body is refused."""

from __future__ import annotations

from quart import request

from app.chat.keys import check_key


def idempotency_key() -> str | None:
    """Return the key of the current HTTP request, if it has one.

    Raises:
        InvalidField: it is empty, too long, or cannot be printed.
    """
    key = request.headers.get("Idempotency-Key")
    check_key(key, "Idempotency-Key")
    return key
