"""A WebSocket handshake between its head and its answer: whoever decides about it has all it needs."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING

from websockets.datastructures import Headers as LibraryHeaders
from websockets.exceptions import InvalidHandshake
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.headers import parse_subprotocol
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from nurseries.serving.dialogue import ABNORMAL, QUIET, SocketClosed
from nurseries.serving.headers import Headers
from nurseries.serving.problem import CONTENT_TYPE, Problem, http1_response
from nurseries.serving.websocket import WebSocket
from nurseries.serving.wire import Wire, WireBroken

if TYPE_CHECKING:
    from collections.abc import Iterable

    import h11
    import trio
    from websockets.extensions import Extension

    from nurseries.serving.limits import ServingLimits

# A window of 4 KiB each way and no memory between messages: a socket that compresses stays small.
_DEFLATE = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True,
    client_no_context_takeover=True,
    server_max_window_bits=12,
    client_max_window_bits=12,
    compress_settings={"memLevel": 5},
)


class Refused(Exception):
    """The handshake is not one; `response` says so to the peer."""

    def __init__(self, response: bytes) -> None:
        super().__init__(response.partition(b"\r\n")[0].decode("latin-1"))
        self.response = response


class Handshake:
    """A valid WebSocket upgrade request that waits for its answer. Answer it once; then the headers are gone.

    Attributes:
        path: of the request target, still percent-encoded, without the query.
        query: what stands behind the `?`, still percent-encoded.
        headers: of the request.
        peer: the client's address; behind a trusted proxy, the one that it names.
        origin: the `Origin` header, None when absent.
        subprotocols: as offered, in that order.
        answered: whether it was accepted or refused.
        socket: the socket, once accepted.
        patience: the scope whose deadline is lifted by the answer.
    """

    __slots__ = (
        "_early",
        "_extensions",
        "_limits",
        "_response",
        "_wire",
        "answered",
        "headers",
        "origin",
        "path",
        "patience",
        "peer",
        "query",
        "socket",
        "subprotocols",
    )

    def __init__(
        self, request: h11.Request, early: bytes, wire: Wire, limits: ServingLimits, *, peer: str
    ) -> None:
        """Check a request that asks for an upgrade; `early` is what came behind it.

        Raises:
            Refused: it is not a valid handshake.
        """
        self.headers = Headers(request.headers)
        self.path, _, self.query = request.target.decode("ascii").partition("?")
        self.peer = peer
        self.origin = self.headers.get("origin")
        self.socket: WebSocket | None = None
        self.answered = False
        self.patience: trio.CancelScope | None = None
        self._early = early
        self._wire = wire
        self._limits = limits
        self._response, self._extensions = _negotiate(request, deflate=limits.deflate)
        self.subprotocols = _offered_subprotocols(self.headers)

    async def accept(self, subprotocol: str | None = None) -> WebSocket:
        """Accept, with one of the offered subprotocols or none, and return the open socket.

        Raises:
            SocketClosed: the peer is gone already.
            ValueError: that subprotocol was not offered.
            RuntimeError: the handshake was answered before.
        """
        if subprotocol is not None and subprotocol not in self.subprotocols:
            raise ValueError(f"not offered: {subprotocol!r}")
        self._answer()
        if subprotocol is not None:
            self._response.headers["Sec-WebSocket-Protocol"] = subprotocol
        try:
            await self._wire.send(self._response.serialize())
        except WireBroken:
            raise SocketClosed(ABNORMAL) from None
        self.socket = WebSocket(
            self._wire,
            self._limits,
            peer=self.peer,
            subprotocol=subprotocol,
            extensions=self._extensions,
            early=self._early,
        )
        # The socket may stay open for days; what was asked for in its head is not kept for so long.
        self._early, self.headers, self._extensions = b"", Headers(()), []
        del self._response
        return self.socket

    async def refuse(
        self,
        status: int,
        *,
        body: bytes = b"",
        content_type: str = CONTENT_TYPE,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Answer with an HTTP error instead, and close the connection.

        Without a body the answer is the usual problem for `status`.
        """
        self._answer()
        response = http1_response(status, body or Problem.of(status).body, content_type, headers)
        try:
            await self._wire.send(response)
        except WireBroken:
            return
        await self._wire.finish(self._limits.close_seconds)

    def _answer(self) -> None:
        if self.answered:
            raise RuntimeError("a handshake is answered once")
        self.answered = True
        if self.patience is not None:
            self.patience.deadline = math.inf


def wants_websocket(request: h11.Request) -> bool:
    """Tell whether a request asks for an upgrade to WebSocket, validly or not."""
    return any(name == b"upgrade" and b"websocket" in value.lower() for name, value in request.headers)


def _negotiate(request: h11.Request, *, deflate: bool) -> tuple[Response, list[Extension]]:
    headers = LibraryHeaders()
    for name, value in request.headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            raise Refused(Problem.of(400).response())
        try:
            headers[name.decode("latin-1")] = value.decode("latin-1")
        except InvalidHandshake:  # control characters, which h11 lets pass
            raise Refused(Problem.of(400, "bad_handshake").response()) from None
    protocol = ServerProtocol(extensions=[_DEFLATE] if deflate else None, logger=QUIET)
    response = protocol.accept(
        Request(
            request.target.decode("ascii"),
            headers,
            request.method.decode("ascii"),
            f"HTTP/{request.http_version.decode('ascii')}",
        )
    )
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        # The library's text repeats the peer's headers; a problem says as much without them.
        kept = tuple(
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in response.headers.raw_items()
            if name in {"Allow", "Upgrade"}
        )
        if headers.get_all("Sec-WebSocket-Version") != ["13"]:
            kept += ((b"sec-websocket-version", b"13"),)
        problem = Problem(response.status_code, "bad_handshake", kept)
        raise Refused(problem.response())
    return response, list(protocol.extensions)


def _offered_subprotocols(headers: Headers) -> tuple[str, ...]:
    value = headers.get("sec-websocket-protocol")
    if value is None:
        return ()
    try:
        return tuple(parse_subprotocol(value))
    except InvalidHandshake:
        raise Refused(Problem.of(400, "bad_handshake").response()) from None
