"""One WebSocket: the sans-I/O protocol of `websockets`, driven by its reader and its writer.

There is no task in here. The task that calls `receive` reads the socket, answers pings, notices silence and
holds back a flood; the task that calls `send` writes. Both may be the same.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import SERVER, Protocol, State

from nurseries.serving.rates import Rate
from nurseries.serving.wire import Wire, WireBroken

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from websockets.extensions import Extension
    from websockets.http11 import Request, Response

    from nurseries.serving.limits import ServingLimits

# At DEBUG the library logs headers and payloads, that is tokens and conversations.
QUIET = logging.getLogger("nurseries.serving.protocol")
QUIET.setLevel(logging.WARNING)

ABNORMAL = 1006
_NO_STATUS = 1005
_REASON_BYTES = 123  # what a close frame has room for beside its code (RFC 6455, 5.5)


class SocketClosed(Exception):
    """The socket is closed; nothing more comes and nothing more can be sent.

    Attributes:
        code: the close code: the peer's when it closed first, else ours; 1005 when the peer gave none,
            1006 when the connection was lost without a farewell.
        reason: the text that came with it.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class WebSocket:
    """An accepted WebSocket. One task may `receive` while another one `send`s.

    Somebody must always be in `receive`: it is what sees the peer leave and what keeps the heartbeat.

    Attributes:
        peer: the client's address.
        subprotocol: what was agreed on, or None.
    """

    __slots__ = (
        "_closed",
        "_deflated",
        "_ended",
        "_events",
        "_limits",
        "_message",
        "_outgoing",
        "_over_until",
        "_protocol",
        "_rate",
        "_reading",
        "_text",
        "_wire",
        "peer",
        "subprotocol",
    )

    def __init__(  # noqa: PLR0913  # all that a handshake agreed on
        self,
        wire: Wire,
        limits: ServingLimits,
        *,
        peer: str,
        subprotocol: str | None,
        extensions: Sequence[Extension] = (),
        early: bytes = b"",
    ) -> None:
        self.peer = peer
        self.subprotocol = subprotocol
        self._wire = wire
        self._limits = limits
        self._protocol = Protocol(SERVER, max_size=limits.message_bytes, logger=QUIET)
        self._protocol.extensions = list(extensions)
        self._deflated = bool(extensions)
        self._rate = Rate(limits.frames_per_minute / 60, limits.frame_burst)
        self._over_until = 0.0  # when a peer that stays above its rate is closed; 0.0 below it
        self._outgoing: list[bytes] = []
        self._message: bytearray | None = None  # the fragments so far
        self._text = False
        self._reading = False
        self._ended: trio.Event | None = None  # made when somebody waits for it
        self._closed: SocketClosed | None = None
        if early:
            self._protocol.receive_data(early)
        self._events: Iterator[Request | Response | Frame] = iter(self._protocol.events_received())

    # -- receiving -----------------------------------------------------------------------------------

    async def receive(self) -> str | bytes:
        """Return the next message: text as `str`, binary as `bytes`.

        A peer above its rate is read at its rate only, so TCP holds it back; above it for `flood_seconds`
        without a pause, it is closed with 1008. A silent peer is pinged, then closed with 4408.

        Raises:
            SocketClosed: the socket was closed, by whichever side.
        """
        waited = False
        while True:
            event = next(self._events, None)  # frames that came in one read are handed out one by one
            if event is None:
                if self._closed is not None or self._protocol.state is not State.OPEN:
                    await self._end()
                    raise self._why()
                await self._read()
                waited = True
                continue
            now = trio.current_time()
            wait = self._rate.take(now)
            if wait == 0.0:
                self._over_until = 0.0
            else:
                self._over_until = self._over_until or now + self._limits.flood_seconds
                await self._hold_back(now + wait)
                waited = True
            try:
                message = self._take(event)
            except UnicodeDecodeError as error:
                self._events = iter(())
                if self._protocol.state is State.OPEN:
                    self._protocol.fail(1007, f"{error.reason} at position {error.start}")
                continue
            if message is not None:
                if not waited:
                    await trio.lowlevel.checkpoint()
                return message

    def _take(self, event: Request | Response | Frame) -> str | bytes | None:
        """Return the message that this frame completes, if it does."""
        assert isinstance(event, Frame)
        opcode = event.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            text = opcode is Opcode.TEXT
            data = event.data
            if not event.fin:
                self._text = text
                self._message = bytearray(data)
                return None
        elif opcode is Opcode.CONT and self._message is not None:
            self._message += event.data
            if not event.fin:
                return None
            text, data, self._message = self._text, self._message, None
        else:
            return None
        return str(data, "utf-8") if text else bytes(data)

    async def _read(self) -> None:
        """Feed the protocol the next bytes and send what it answers, pinging a peer that is silent."""
        pinged = False
        self._reading = True
        try:
            while True:
                silent_at = trio.current_time() + self._limits.heartbeat_seconds
                with trio.CancelScope(deadline=silent_at) as scope:  # move_on_after costs twice as much
                    data = await self._wire.receive()
                if not scope.cancelled_caught:
                    break
                if pinged:
                    await self._close_by_itself(4408, "no heartbeat")
                    raise self._why()
                pinged = True
                if self._protocol.state is State.OPEN:
                    self._protocol.send_ping(b"")
                    await self._flush()
            if data:
                self._protocol.receive_data(data)
                self._events = iter(self._protocol.events_received())
            else:
                self._protocol.receive_eof()
            if self._protocol.writes:
                await self._flush()
        except WireBroken:
            self._mark_closed(ABNORMAL)
        finally:
            self._reading = False
            self._wake_closer()

    async def _hold_back(self, until: float) -> None:
        await trio.sleep_until(min(until, self._over_until))
        if self._closed is not None:  # by another task meanwhile
            raise self._why()
        if until >= self._over_until:
            await self._close_by_itself(1008, "too many frames")
            raise self._why()

    # -- sending -------------------------------------------------------------------------------------

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send text messages, already encoded as UTF-8, in one write.

        A send that is cancelled while it writes leaves the socket closed, since the peer may have half a
        frame.

        Raises:
            SocketClosed: also when the peer takes nothing within the write deadline.
        """
        await self._send(Opcode.TEXT, messages)

    async def send_binary(self, messages: Sequence[bytes]) -> None:
        """Send binary messages in one write; otherwise as `send`."""
        await self._send(Opcode.BINARY, messages)

    async def _send(self, opcode: Opcode, messages: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed is not None or self._protocol.state is not State.OPEN:
            await trio.lowlevel.checkpoint()
            raise self._why()
        outgoing = self._outgoing
        if self._deflated:
            for message in messages:
                frame = Frame(opcode, message)
                outgoing.append(frame.serialize(mask=False, extensions=self._protocol.extensions))
        else:
            first = 0x80 | opcode
            for message in messages:
                outgoing.append(_frame_head(first, len(message)))
                outgoing.append(message)
        try:
            await self._flush()
        except WireBroken:
            self._mark_closed(ABNORMAL)
            raise self._why() from None
        except BaseException:
            self._mark_closed(ABNORMAL)
            self._wire.abort()
            raise

    async def _flush(self) -> None:
        """Write everything that waits: messages first, then what the protocol has to say."""
        writes = self._protocol.data_to_send()
        if self._outgoing:
            writes[:0] = self._outgoing
            self._outgoing.clear()
        await self._wire.send(writes[0] if len(writes) == 1 else b"".join(writes))

    # -- closing -------------------------------------------------------------------------------------

    async def close(self, code: int, reason: str = "") -> None:
        """Close with a handshake, and without one when the peer does not answer within `close_seconds`.

        Harmless when the socket is closed already. A reason too long for a close frame is cut.
        """
        if self._closed is not None:
            await trio.lowlevel.checkpoint()
            return
        if not self._reading:
            await self._close_by_itself(code, reason)
            return
        try:  # the reader sees the answer
            with trio.move_on_after(self._limits.close_seconds):
                await self._send_close(code, reason)
                await self._wait_ended()
        except WireBroken:
            self._mark_closed(ABNORMAL)
        finally:
            self._mark_closed(code, reason)
            self._wire.abort()

    async def _send_close(self, code: int, reason: str) -> None:
        if self._protocol.state is State.OPEN:
            text = reason.encode()[:_REASON_BYTES].decode(errors="ignore")
            self._protocol.send_close(code, text)
            await self._flush()

    async def _close_by_itself(self, code: int, reason: str) -> None:
        """Close, reading the answer in this task."""
        self._reading = True
        try:
            with trio.move_on_after(self._limits.close_seconds):
                await self._send_close(code, reason)
                protocol = self._protocol
                while protocol.close_rcvd is None and not protocol.eof_sent:
                    data = await self._wire.receive()
                    if not data:
                        break
                    protocol.receive_data(data)
                    protocol.events_received()
                await self._wire.finish(self._limits.close_seconds)
        except WireBroken:
            self._mark_closed(ABNORMAL)
        finally:
            self._reading = False
            self._mark_closed(code, reason)
            self._wire.abort()

    async def _end(self) -> None:
        """Leave after a close frame was exchanged, or was sent because of what the peer did."""
        await trio.lowlevel.checkpoint()
        if self._reading:  # another task closes, and reads the answer
            await self._wait_ended()
            return
        if self._closed is not None:
            return
        self._reading = True
        try:
            if self._protocol.writes:
                await self._flush()
            await self._wire.finish(self._limits.close_seconds)
        except WireBroken:
            pass
        finally:
            self._reading = False
            self._mark_closed(ABNORMAL)
            self._wire.abort()

    async def _wait_ended(self) -> None:
        self._ended = self._ended or trio.Event()
        await self._ended.wait()

    def _mark_closed(self, code: int, reason: str = "") -> None:
        if self._closed is None:
            protocol = self._protocol
            first: Close | None = protocol.close_sent or protocol.close_rcvd
            if first is None:
                self._closed = SocketClosed(code, reason)
            else:
                self._closed = SocketClosed(first.code, first.reason)
            self._events = iter(())
            self._message = None
        self._wake_closer()

    def _wake_closer(self) -> None:
        if self._ended is not None and (self._closed is not None or self._protocol.close_rcvd is not None):
            self._ended.set()

    def _why(self) -> SocketClosed:
        if self._closed is not None:
            return SocketClosed(self._closed.code, self._closed.reason)
        first = self._protocol.close_sent or self._protocol.close_rcvd
        return SocketClosed(_NO_STATUS) if first is None else SocketClosed(first.code, first.reason)


def _frame_head(first: int, length: int) -> bytes:
    """Return the header of an unmasked frame (RFC 6455, 5.2)."""
    if length < 126:
        return bytes((first, length))
    if length < 65_536:
        return bytes((first, 126)) + length.to_bytes(2, "big")
    return bytes((first, 127)) + length.to_bytes(8, "big")
