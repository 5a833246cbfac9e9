"""One connection's bytes: a deadline on every write, and an end that is always reached.

`Wire` is the same for TCP, unix sockets and TLS. It never blocks longer than a limit on what a peer does,
and every call of it is a checkpoint, also once the peer is gone: a loop over `send` cannot freeze the rest.
"""

from __future__ import annotations

import abc
import contextlib
import select
import socket

import trio

READ_BYTES = 16 * 1024
"""Read at once. Large enough for throughput, small enough that parsing it does not hold up the others."""

_PIECE_BYTES = 64 * 1024


class WireBroken(Exception):
    """The peer is gone, takes no more bytes, or this side has closed the connection."""


class Wire(abc.ABC):
    """The bytes of one connection.

    Attributes:
        secure: whether they travel in TLS.
        protocol: what was agreed on in the TLS handshake, `"h2"` or `"http/1.1"`.
    """

    secure: bool = False
    protocol: str = "http/1.1"

    def __init__(self, sock: socket.socket, write_seconds: float) -> None:
        self._socket = sock
        self._write_seconds = write_seconds
        self._sending = trio.Lock()
        self._watch: select.epoll | None = None  # in it somebody waits for the peer's end
        self.broken = False

    async def send(self, data: bytes) -> None:
        """Send all of `data`, after what others are sending.

        A send that fails, is cancelled or meets the write deadline leaves the wire broken: the peer may have
        half a frame.

        Raises:
            WireBroken: also when it was broken before.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            if self.broken:
                await trio.lowlevel.checkpoint()
                raise WireBroken  # noqa: TRY301  # behind the lock, and the lock must go
            await self._send(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.abort()
            await trio.lowlevel.cancel_shielded_checkpoint()  # the system may have said so at once
            raise WireBroken from error
        except BaseException:
            self.abort()
            raise
        finally:
            self._sending.release()

    async def receive(self) -> bytes:
        """Return the next bytes, `b""` when the peer has sent its last.

        Raises:
            WireBroken: the connection was reset, or is closed on this side.
        """
        if self.broken:
            # Trio would wait for the descriptor -1 like for any other, and once for all closed sockets.
            await trio.lowlevel.checkpoint()
            raise WireBroken
        try:
            return await self._receive()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.abort()
            raise WireBroken from error

    async def wait_end(self) -> None:
        """Return when the peer has hung up, or this side has, though what it said before is still unread.

        For who cannot take any more now, and must see a disconnect all the same. What comes waits in the
        system's buffer; TCP holds back what is beyond that, and an orderly end with it.
        """
        if self.broken:
            await trio.lowlevel.checkpoint()
            return
        try:
            watch = select.epoll()  # to wait until the socket can be read would return at once
        except OSError:  # no descriptor is left: who reads again sees the end then
            await trio.sleep_forever()
        with watch:
            watch.register(self._socket, select.EPOLLRDHUP)
            self._watch = watch
            try:
                await trio.lowlevel.wait_readable(watch.fileno())
            except trio.ClosedResourceError:
                return  # this side has closed the connection
            finally:
                self._watch = None

    async def finish(self, seconds: float) -> None:
        """Say that no more will be sent, let the peer read what was sent for at most `seconds`, then close.

        To close a socket with unread bytes in it resets the connection, and a reset destroys what the peer
        has not read yet: the very answer that says why it was refused.
        """
        with trio.move_on_after(seconds):
            try:
                await self._send_eof()
                while await self.receive():
                    pass
            except (WireBroken, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except trio.BusyResourceError:  # another task reads; it will see the end
                pass
        self.abort()

    def abort(self) -> None:
        """Close now, without a farewell. Whoever waits on the wire gets `WireBroken`. Harmless when repeated."""
        self.broken = True
        if self._watch is not None:
            trio.lowlevel.notify_closing(self._watch.fileno())
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    @abc.abstractmethod
    async def _send(self, data: bytes) -> None: ...

    @abc.abstractmethod
    async def _receive(self) -> bytes: ...

    @abc.abstractmethod
    async def _send_eof(self) -> None: ...


class SocketWire(Wire):
    """A plain TCP or unix connection, on the socket itself: one system call a write, one a read."""

    async def _send(self, data: bytes) -> None:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        with memoryview(data) as view:
            while sent < len(data):
                sent += await self._send_piece(view[sent : sent + _PIECE_BYTES])

    async def _send_piece(self, piece: memoryview) -> int:
        sent = 0
        with trio.move_on_after(self._write_seconds) as scope:
            while sent < len(piece):
                await trio.lowlevel.wait_writable(self._socket)
                try:
                    sent += self._socket.send(piece[sent:])
                except BlockingIOError:
                    continue
        if scope.cancelled_caught:
            raise trio.BrokenResourceError("write deadline")
        return sent

    async def _receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(READ_BYTES)
            except BlockingIOError:  # woken for nothing
                continue

    async def _send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._socket.shutdown(socket.SHUT_WR)


class TLSWire(Wire):
    """A TLS connection over TCP or a unix socket, whose handshake is done."""

    secure = True

    def __init__(
        self, sock: socket.socket, stream: trio.SSLStream[trio.SocketStream], write_seconds: float
    ) -> None:
        super().__init__(sock, write_seconds)
        self._stream = stream
        self._finished = False  # TLS is over; what still comes is read to be thrown away
        self.protocol = stream.selected_alpn_protocol() or "http/1.1"

    async def _send(self, data: bytes) -> None:
        with memoryview(data) as view:
            for start in range(0, len(data), _PIECE_BYTES):
                with trio.move_on_after(self._write_seconds) as scope:
                    await self._stream.send_all(view[start : start + _PIECE_BYTES])
                if scope.cancelled_caught:
                    raise trio.BrokenResourceError("write deadline")

    async def _receive(self) -> bytes:
        if self._finished:
            return bytes(await self._stream.transport_stream.receive_some(READ_BYTES))
        return bytes(await self._stream.receive_some(READ_BYTES))

    async def _send_eof(self) -> None:
        self._finished = True
        with contextlib.suppress(
            trio.BrokenResourceError
        ):  # by what the peer still sends instead of its answer
            await self._stream.unwrap()
        await self._stream.transport_stream.send_eof()
