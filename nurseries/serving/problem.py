"""The answers that the serving layer gives by itself, as RFC 9457 problems."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable

CONTENT_TYPE = "application/problem+json"

_CODES = MappingProxyType(
    {
        400: "bad_request",
        408: "timeout",
        413: "too_large",
        414: "too_large",
        429: "rate_limited",
        431: "too_large",
        500: "internal",
        501: "not_implemented",
        505: "not_implemented",
        503: "unavailable",
    }
)


@attrs.frozen
class Problem:
    """An error answer.

    Attributes:
        status: the HTTP status.
        code: the stable name of what is wrong.
        headers: more header fields, names in lower case.
    """

    status: int
    code: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @classmethod
    def of(cls, status: int, code: str | None = None, *, retry_after: float | None = None) -> Problem:
        """Return the usual problem for a status; `retry_after` is in seconds, rounded up."""
        headers = () if retry_after is None else ((b"retry-after", b"%d" % max(1, math.ceil(retry_after))),)
        return cls(status, code or _CODES.get(status, "bad_request"), headers)

    @property
    def body(self) -> bytes:
        """The problem as JSON."""
        title = HTTPStatus(self.status).phrase
        return json.dumps(
            {"type": "about:blank", "title": title, "status": self.status, "code": self.code}
        ).encode()

    def response(self) -> bytes:
        """Return a whole HTTP/1.1 response, after which the connection is closed."""
        return http1_response(self.status, self.body, CONTENT_TYPE, self.headers)


def http1_response(
    status: int, body: bytes, content_type: str, headers: Iterable[tuple[bytes, bytes]] = ()
) -> bytes:
    """Return a whole HTTP/1.1 response, after which the connection is closed.

    Raises:
        ValueError: a header would break out of its line.
    """
    lines = [
        b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()),
        b"content-type: " + content_type.encode("latin-1"),
        b"content-length: %d" % len(body),
        b"connection: close",
        *(name + b": " + value for name, value in headers),
    ]
    for line in lines:
        if b"\r" in line or b"\n" in line:
            raise ValueError(f"not a header line: {line!r}")
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
