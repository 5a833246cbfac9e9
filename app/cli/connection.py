"""One socket of the protocol: the sans-I/O layer of `websockets` straight on a Trio stream.

A load generator shares its machine with the server that it measures. Receiving a frame costs about 20 µs of
CPU this way; through trio-websocket it is about 115 µs, at 3,500 frames a second nearly half a core. And
whoever needs a socket that ends cleanly finds that trio-websocket leaves its stream open when the peer goes
first, and puts two messages into one when a send is cancelled.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from app.cli.client import SOCKET_PATH, open_stream
from app.cli.failures import ABNORMAL, Closed, Unreachable, admitted, refusal
from nurseries.cleanup import cleanup_scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SUBPROTOCOL: Final = "nurseries.v1"
RECEIVE_BYTES: Final = 65536
CONNECT_SECONDS: Final = 15.0
GOODBYE_SECONDS: Final = 2.0
"""How long the closing handshake may take before the stream is simply dropped."""


class Connection:
    """An open socket. One task receives; any task sends.

    A send that is cancelled closes the stream: half a frame may be on its way.
    """

    def __init__(self, stream: trio.abc.Stream, protocol: ClientProtocol) -> None:
        self._stream = stream
        self._protocol = protocol
        self._sending = trio.Lock()

    async def receive(self) -> list[bytes]:
        """Return the messages that the next read completes, at least one.

        Raises:
            Closed: there are no more.
        """
        while True:
            messages = [
                bytes(event.data)
                for event in self._protocol.events_received()
                if isinstance(event, WebSocketFrame) and event.opcode is Opcode.TEXT
            ]
            try:
                await self.flush()  # answers to pings and to a close
            except Closed:
                if not messages:
                    raise
            if messages:
                return messages
            if self._protocol.close_rcvd is not None:
                raise self._closed()
            await self._read()

    async def send(self, message: bytes) -> None:
        """Send one text message.

        Raises:
            Closed: it cannot be sent any more.
        """
        if self._protocol.state is not State.OPEN:
            raise self._closed()
        self._protocol.send_text(message)
        await self.flush()

    async def abort(self) -> None:
        """Leave without a word, as a phone in a tunnel does."""
        await trio.aclose_forcefully(self._stream)

    async def flush(self) -> None:
        """Send what the protocol has to say; nothing happens if that is nothing."""
        if not (waiting := self._protocol.data_to_send()):
            return
        try:
            async with self._sending:
                await self._stream.send_all(b"".join(waiting))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._closed() from exc
        except trio.Cancelled:
            await trio.aclose_forcefully(self._stream)
            raise

    async def shake_hands(self, token: str) -> None:
        """Ask for the upgrade and wait for the answer.

        Raises:
            Refused: the answer is another than an upgrade.
            Unreachable: there is none, or it is not one of this protocol.
        """
        request = self._protocol.connect()
        request.headers["Authorization"] = f"Bearer {token}"
        self._protocol.send_request(request)
        await self.flush()
        while self._protocol.handshake_exc is None and not self._protocol.events:
            await self._read()
        failed = self._protocol.handshake_exc
        if isinstance(failed, InvalidStatus):
            answer = failed.response
            raise refusal(answer.status_code, bytes(answer.body or b""), answer.headers.get("Retry-After"))
        if failed is not None:
            raise Unreachable(f"the handshake failed: {failed}") from failed
        if self._protocol.subprotocol != SUBPROTOCOL:
            raise Unreachable(f"the server does not speak {SUBPROTOCOL}")

    async def say_goodbye(self) -> None:
        """Close in order, if it is not closed yet."""
        if self._protocol.state is not State.OPEN:
            return
        try:
            self._protocol.send_close(1000)
            await self.flush()
            while True:
                await self.receive()
        except Closed:
            return

    async def _read(self) -> None:
        try:
            data = await self._stream.receive_some(RECEIVE_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if data:
            self._protocol.receive_data(data)
            return
        self._protocol.receive_eof()
        raise self._closed()

    def _closed(self) -> Closed:
        received = self._protocol.close_rcvd
        return Closed(received.code, received.reason) if received is not None else Closed(ABNORMAL)


@asynccontextmanager
async def open_connection(url: str, token: str, *, patience: float = 0.0) -> AsyncIterator[Connection]:
    """Open a socket at the server `url` (`http://host:port`) as the user whose access token this is.

    Args:
        url: of the server.
        token: an access token.
        patience: seconds that may be spent waiting where the server says that it has no room now.

    Raises:
        Refused: the handshake was answered, with something else than an upgrade.
        Unreachable: it was not answered in time.
    """
    stream, connection = await admitted(partial(_connect, url, token), patience=patience)
    async with stream:
        try:
            yield connection
        finally:
            with cleanup_scope(GOODBYE_SECONDS):
                await connection.say_goodbye()


async def _connect(url: str, token: str) -> tuple[trio.abc.Stream, Connection]:
    uri = parse_uri("ws" + url.removeprefix("http").rstrip("/") + SOCKET_PATH)
    protocol = ClientProtocol(uri, subprotocols=[Subprotocol(SUBPROTOCOL)])
    with trio.move_on_after(CONNECT_SECONDS):
        stream = await open_stream(url)
        connection = Connection(stream, protocol)
        try:
            await connection.shake_hands(token)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream, connection
    raise Unreachable(f"{url} did not answer a handshake in {CONNECT_SECONDS:.0f} s")
