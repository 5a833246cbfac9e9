"""Server-sent events as providers stream them, in bounded memory.

The SDKs have decoders of their own, but bound no event, and are generators within generators: one that is left in
the middle is closed by the garbage collector, with the connection still open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from app.engine.models.errors import ModelFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EVENT: Final = 1024 * 1024
"""Bytes of one event."""


@attrs.frozen
class Event:
    """One event; `type` is empty where the stream names none."""

    type: str
    data: bytes


class EventDecoder:
    """Bytes in, events out. Lines end with LF or CRLF; comments, `id` and `retry` mean nothing here.

    See https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._type = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that `chunk` completes.

        Raises:
            ModelFailure: an event is longer than `MAX_EVENT`.
        """
        self._buffer += chunk
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end]).removesuffix(b"\r")
            del self._buffer[: end + 1]
            self._searched = 0
            if line:
                self._field(line)
                self._check()
                continue
            if self._data:
                yield Event(self._type, b"\n".join(self._data))
            self._type, self._data, self._size = "", [], 0
        self._searched = len(self._buffer)
        self._check()

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        elif name == b"event":
            self._type = value.decode("utf-8", "replace")

    def _check(self) -> None:
        if self._size + len(self._buffer) > MAX_EVENT:
            raise ModelFailure("sent an event that is too long")
