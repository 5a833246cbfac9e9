"""What the two ends of a WebSocket say to each other, without I/O: the protocol of `websockets`, and messages.

Bytes go in with `feed`, messages come out of `next_frame` and `message_of`; messages and farewells go in, and
`data_to_send` has the bytes for them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from websockets.frames import Frame
from websockets.protocol import SERVER, Protocol, State

from nurseries.serving.messages import Assembly, frames_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from websockets.extensions import Extension
    from websockets.http11 import Request, Response

# At DEBUG the library logs headers and payloads, that is tokens and conversations.
QUIET = logging.getLogger("nurseries.serving.protocol")
QUIET.setLevel(logging.WARNING)

_REASON_BYTES = 123  # what a close frame has room for beside its code (RFC 6455, 5.5)

_PIECE_BYTES = 2 * 1024  # parsed at once: the smallest frames take forty times their size in memory

NO_STATUS = 1005
ABNORMAL = 1006


class SocketClosed(Exception):
    """The socket is closed; nothing more comes and nothing more can be sent.

    Attributes:
        code: the close code: the peer's when it closed first, else ours; 1005 when the peer gave none,
            1006 when the connection was lost without a farewell.
        reason: the text that came with it.
        by_peer: whether the peer said farewell first.
    """

    def __init__(self, code: int, reason: str = "", *, by_peer: bool = False) -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason
        self.by_peer = by_peer


class Dialogue:
    """One WebSocket's, from the answer to its handshake on."""

    __slots__ = ("_assembly", "_events", "_outgoing", "_protocol", "_unparsed")

    def __init__(self, message_bytes: int, extensions: Sequence[Extension] = (), early: bytes = b"") -> None:
        self._protocol = Protocol(SERVER, max_size=message_bytes, logger=QUIET)
        self._protocol.extensions = list(extensions)
        self._assembly = Assembly()
        self._outgoing: list[bytes] = []
        self._unparsed = b""
        self._events: Iterator[Request | Response | Frame] = iter(())
        if early:
            self.feed(early)

    @property
    def is_open(self) -> bool:
        """Whether neither end has said farewell, nor done what ends it."""
        return self._protocol.state is State.OPEN

    @property
    def peer_closed(self) -> bool:
        """Whether the peer has said farewell."""
        return self._protocol.close_rcvd is not None

    @property
    def over(self) -> bool:
        """Whether nothing of the peer is waited for."""
        return self.peer_closed or self._protocol.eof_sent

    @property
    def outcome(self) -> SocketClosed | None:
        """What the close frames that were exchanged amount to, None before one."""
        farewell = self._protocol.close_sent or self._protocol.close_rcvd
        if farewell is None:
            return None
        by_peer = self.peer_closed and self._protocol.close_rcvd_then_sent is not False
        return SocketClosed(farewell.code, farewell.reason, by_peer=by_peer)

    def feed(self, data: bytes) -> None:
        """Take what the peer sent; `b""` is its end."""
        self._unparsed += data
        if data:
            self._parse()
        else:
            self._protocol.receive_eof()

    def _parse(self) -> None:
        piece, self._unparsed = self._unparsed[:_PIECE_BYTES], self._unparsed[_PIECE_BYTES:]
        self._protocol.receive_data(piece)
        self._events = iter(self._protocol.events_received())

    def next_frame(self) -> Frame | None:
        """Return the next frame of what was fed, control frames too, None when there is none."""
        event = next(self._events, None)
        while event is None and self._unparsed:
            self._parse()
            event = next(self._events, None)
        assert event is None or isinstance(event, Frame)
        return event

    def skip(self) -> None:
        """Go on to the end of what was fed, for who waits for the peer's farewell alone."""
        while self._unparsed:
            self._parse()

    def message_of(self, frame: Frame) -> str | bytes | None:
        """Return the message that a frame completes, if it does. A text that is not UTF-8 ends the dialogue."""
        try:
            return self._assembly.add(frame)
        except UnicodeDecodeError as error:
            self._drop()
            if self.is_open:
                self._protocol.fail(1007, f"{error.reason} at position {error.start}")
            return None

    def forget(self) -> None:
        """Drop what came and was not taken."""
        self._drop()
        self._assembly.clear()

    def _drop(self) -> None:
        self._unparsed = b""
        self._events = iter(())

    def say(self, messages: Sequence[bytes]) -> None:
        """Have messages sent: plain bytes as text, `Binary` as binary."""
        self._outgoing += frames_of(messages, self._protocol.extensions)

    def ping(self) -> None:
        """Ask for a sign of life."""
        if self.is_open:
            self._protocol.send_ping(b"")

    def say_farewell(self, code: int, reason: str) -> None:
        """Begin the closing handshake, unless it has begun. A reason too long for a close frame is cut."""
        if self.is_open:
            text = reason.encode()[:_REASON_BYTES].decode(errors="ignore")
            self._protocol.send_close(code, text)

    def data_to_send(self) -> bytes:
        """Return all that waits to be sent: messages first, then what the protocol has to say."""
        writes = self._protocol.data_to_send()
        if self._outgoing:
            writes[:0] = self._outgoing
            self._outgoing.clear()
        return writes[0] if len(writes) == 1 else b"".join(writes)
