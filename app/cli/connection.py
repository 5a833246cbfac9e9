"""One socket of the protocol over trio-websocket.

Another implementation of WebSocket than the server's, on purpose: two that agree are worth more than one.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec
import trio
import trio_websocket

from app.cli.client import ABNORMAL, Closed, Unreachable, refusal, tls_context
from app.cli.frames import Frame, decode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SUBPROTOCOL: Final = "nurseries.v1"
CONNECT_SECONDS: Final = 15.0
GOODBYE_SECONDS: Final = 2.0
"""How long the closing handshake may take before the stream is simply dropped."""


class Connection:
    """An authenticated socket whose `connection_established` has been read.

    Attributes:
        established: that first frame.
    """

    def __init__(self, websocket: trio_websocket.WebSocketConnection, established: Frame) -> None:
        self._websocket = websocket
        self.established = established

    async def receive(self) -> tuple[Frame, bytes]:
        """Return the next frame, decoded and as it came.

        Raises:
            Closed: there is none.
        """
        return await _receive(self._websocket)

    async def send(self, **frame: object) -> None:
        """Send one frame.

        A send that is cancelled closes the socket: half a frame may be on its way, and trio-websocket would
        put the next one right behind it.

        Raises:
            Closed: it cannot be sent any more.
        """
        try:
            await self._websocket.send_message(msgspec.json.encode(frame).decode())
        except trio_websocket.ConnectionClosed as exc:
            raise _closed(exc) from exc
        except trio.Cancelled:
            await trio.aclose_forcefully(self._websocket)
            raise


@asynccontextmanager
async def open_connection(url: str, token: str) -> AsyncIterator[Connection]:
    """Open a socket at the server `url` (`http://host:port`) as the user whose access token this is.

    Raises:
        Refused: the handshake was answered, with something else than an upgrade.
        Unreachable: it was not answered.
        Closed: it was accepted and closed again before the first frame.
    """
    secure = url.startswith("https:")
    try:
        async with trio_websocket.open_websocket_url(
            "ws" + url.removeprefix("http").rstrip("/") + "/v1/ws",
            tls_context() if secure else None,
            subprotocols=[SUBPROTOCOL],
            extra_headers=[(b"authorization", f"Bearer {token}".encode())],
            connect_timeout=CONNECT_SECONDS,
            disconnect_timeout=GOODBYE_SECONDS,
        ) as websocket:
            if websocket.subprotocol != SUBPROTOCOL:
                raise Unreachable(f"{url} does not speak {SUBPROTOCOL}")
            with trio.move_on_after(CONNECT_SECONDS) as scope:
                established, _ = await _receive(websocket)
            if scope.cancelled_caught:
                raise Unreachable(f"{url} accepted a socket and said nothing")
            yield Connection(websocket, established)
    except trio_websocket.ConnectionRejected as exc:
        headers = {name.lower(): value for name, value in exc.headers}
        raise refusal(exc.status_code, exc.body or b"", headers.get(b"retry-after", b"").decode()) from exc
    except trio_websocket.DisconnectionTimeout:
        logging.getLogger(__name__).debug("the server did not answer the close frame")
    except trio_websocket.HandshakeError as exc:
        raise Unreachable(f"cannot open a socket at {url}: {exc.__cause__ or exc}") from exc


async def _receive(websocket: trio_websocket.WebSocketConnection) -> tuple[Frame, bytes]:
    try:
        message = await websocket.get_message()
    except trio_websocket.ConnectionClosed as exc:
        raise _closed(exc) from exc
    raw = message.encode() if isinstance(message, str) else message
    try:
        return decode(raw), raw
    except ValueError as exc:
        raise Unreachable(f"a frame that is not of this protocol: {exc}") from exc


def _closed(exc: trio_websocket.ConnectionClosed) -> Closed:
    if exc.reason is None:
        return Closed(ABNORMAL)
    return Closed(exc.reason.code, exc.reason.reason or "")
