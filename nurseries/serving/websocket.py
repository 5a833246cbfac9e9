"""One WebSocket on its connection: deadlines, heartbeat, a flood that is held back, and the way to an end.

There is no task in here. The task that calls `receive` reads the socket, answers pings, notices silence and
holds back a flood; the task that calls `send` writes. Both may be the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from nurseries.serving.dialogue import ABNORMAL, NO_STATUS, Dialogue, SocketClosed
from nurseries.serving.rates import Rate
from nurseries.serving.wire import Wire, WireBroken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from websockets.extensions import Extension

    from nurseries.serving.limits import ServingLimits


class WebSocket:
    """An accepted WebSocket. One task may `receive` while another one `send`s.

    Somebody must always be in `receive`: it is what sees the peer leave and what keeps the heartbeat. Who
    cannot take a message now waits in `wait_left` meanwhile.

    Attributes:
        peer: the client's address.
        subprotocol: what was agreed on, or None.
    """

    __slots__ = (
        "_closed",
        "_dialogue",
        "_ended",
        "_limits",
        "_over_until",
        "_rate",
        "_reading",
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
        self._dialogue = Dialogue(limits.message_bytes, extensions, early)
        self._rate = Rate(limits.frames_per_minute / 60, limits.frame_burst)
        self._over_until = 0.0  # when a peer that stays above its rate is closed; 0.0 below it
        self._reading = False
        self._ended: trio.Event | None = None  # made when somebody waits for it
        self._closed: SocketClosed | None = None

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
            frame = self._dialogue.next_frame()  # frames that came in one read are handed out one by one
            if frame is None:
                if self._closed is not None or not self._dialogue.is_open:
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
            message = self._dialogue.message_of(frame)
            if message is not None:
                if not waited:
                    await trio.lowlevel.checkpoint()
                return message

    async def _read(self) -> None:
        """Take the next bytes and send what answers them, pinging a peer that is silent."""
        pinged = False
        self._reading = True
        try:
            await self._flush()  # what answers bytes that came before, with the handshake or the last message
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
                self._dialogue.ping()
                await self._flush()
            self._dialogue.feed(data)
            await self._flush()
        except WireBroken:
            self._mark_closed(ABNORMAL)
        finally:
            self._reading = False
            self._wake_closer()

    async def wait_left(self) -> None:
        """Return when the peer has left, taking no message: for who cannot take one now, and must see that.

        What comes meanwhile waits for `receive`, in the system's buffer. Then the socket is closed, and
        messages that nobody received are dropped. Nothing is raised.
        """
        await self._wire.wait_end()
        self._mark_closed(ABNORMAL)
        self._wire.abort()

    async def _hold_back(self, until: float) -> None:
        if not self._dialogue.is_open:  # whoever closes waits for what the peer says to that
            return
        with trio.CancelScope(deadline=min(until, self._over_until)):
            await self.wait_left()
        if self._closed is not None:
            raise self._why()
        if until >= self._over_until and self._dialogue.is_open:
            await self._close_by_itself(1008, "too many frames")
            raise self._why()

    # -- sending -------------------------------------------------------------------------------------

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send messages in one write: plain bytes as text, encoded as UTF-8 already, `Binary` as binary.

        A send that is cancelled while it writes leaves the socket closed, since the peer may have half a
        frame.

        Raises:
            SocketClosed: also when the peer takes nothing within the write deadline.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed is not None or not self._dialogue.is_open:
            await trio.lowlevel.checkpoint()
            raise self._why()
        self._dialogue.say(messages)
        try:
            await self._wire.send(self._dialogue.data_to_send())
        except WireBroken:
            self._mark_closed(ABNORMAL)
            raise self._why() from None
        except BaseException:
            self._mark_closed(ABNORMAL)
            self._wire.abort()
            raise

    async def _flush(self) -> None:
        data = self._dialogue.data_to_send()
        if data:
            await self._wire.send(data)

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
                self._dialogue.say_farewell(code, reason)
                await self._flush()
                await self._wait_ended()
        except WireBroken:
            self._mark_closed(ABNORMAL)
        finally:
            self._mark_closed(code, reason)
            self._wire.abort()

    async def _close_by_itself(self, code: int, reason: str) -> None:
        """Close, reading the answer in this task."""
        self._reading = True
        try:
            with trio.move_on_after(self._limits.close_seconds):
                self._dialogue.skip()
                self._dialogue.say_farewell(code, reason)
                await self._flush()
                while not self._dialogue.over:
                    data = await self._wire.receive()
                    if not data:
                        break
                    self._dialogue.feed(data)
                    self._dialogue.skip()
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
        if self._ended is not None:  # another task closes, and waits for what this one reads
            while self._closed is None and not self._dialogue.over:
                await self._read()
            return
        if self._closed is not None:
            return
        self._reading = True
        try:
            await self._flush()
            await self._wire.finish(self._limits.close_seconds)
        except WireBroken:
            pass
        finally:
            self._reading = False
            self._mark_closed(ABNORMAL)
            self._wire.abort()

    async def _wait_ended(self) -> None:
        if self._ended is None:
            self._ended = trio.Event()
        await self._ended.wait()

    def _mark_closed(self, code: int, reason: str = "") -> None:
        if self._closed is None:
            self._closed = self._dialogue.outcome or SocketClosed(code, reason)
            self._dialogue.forget()
        self._wake_closer()

    def _wake_closer(self) -> None:
        if self._ended is not None and (self._closed is not None or self._dialogue.peer_closed):
            self._ended.set()

    def _why(self) -> SocketClosed:
        closed = self._closed or self._dialogue.outcome or SocketClosed(NO_STATUS)
        return SocketClosed(closed.code, closed.reason, by_peer=closed.by_peer)
