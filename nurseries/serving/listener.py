"""One port for HTTP and WebSockets: accepts, routes, and keeps every failure where it happened."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import trio

from nurseries.cleanup import cleanup_scope
from nurseries.serving.asgi import ASGIApp, barrier
from nurseries.serving.bind import listening, url_of
from nurseries.serving.bodies import BodyLimit, BodyLimits
from nurseries.serving.connection import OnLimit, Serving, ServingStatistics
from nurseries.serving.dialogue import SocketClosed
from nurseries.serving.handshake import Handshake, Refused
from nurseries.serving.headers import Headers
from nurseries.serving.http1 import HTTP1
from nurseries.serving.http2 import HTTP2
from nurseries.serving.limits import ServingLimits
from nurseries.serving.peers import UNIX, TrustedProxies
from nurseries.serving.problem import Problem
from nurseries.serving.rates import rate_key
from nurseries.serving.tls import Certificates, encrypt
from nurseries.serving.wire import SocketWire, Wire, WireBroken

if TYPE_CHECKING:
    from pathlib import Path

    import h11

WebSocketHandler = Callable[[Handshake], Awaitable[None]]

logger = logging.getLogger("nurseries.serving")

_FULL_SECONDS = 0.1  # to wait when the system has no descriptor or memory for another connection
_ACCEPT_AT_ONCE = 64
_TURN_AWAY_AT_ONCE = 64


def _nobody(_limit: str, _address: str) -> None:
    """Told of limits where nobody else wants to know."""


class Listener:
    """Serves an ASGI application and a WebSocket handler on one port.

    Every connection is a task of its own with a crash barrier around it: a handler's exception is logged
    once, with the peer; its HTTP request gets 500, its socket 1011, and nobody else notices.
    """

    def __init__(  # noqa: PLR0913  # everything a server is configured with
        self,
        *,
        http: ASGIApp,
        websocket: WebSocketHandler,
        host: str | None = "127.0.0.1",
        port: int = 8000,
        unix_path: Path | None = None,
        certificates: Certificates | None = None,
        trusted_proxies: Iterable[str] = (),
        limits: ServingLimits | None = None,
        bodies: Mapping[str, BodyLimit] | None = None,
        on_limit: OnLimit = _nobody,
    ) -> None:
        """Make a listener; `serve` runs it.

        Args:
            http: answers everything that is not a WebSocket handshake. It sees scopes of type `http` only.
            websocket: answers a handshake and serves the socket until it returns.
            host: name or address to bind; `""` is every address, None is no TCP at all.
            port: 0 lets the system pick one.
            unix_path: a unix socket to listen on besides.
            certificates: makes every TCP and unix connection a TLS one.
            trusted_proxies: addresses and networks, and `"unix"`, whose `X-Forwarded-*` headers are believed.
            limits: every deadline and bound.
            bodies: those of the paths whose bodies may be larger, such as uploads.
            on_limit: told of each request and connection that is turned away for a limit.

        Raises:
            ValueError: a trusted proxy is no address.
            OSError: a certificate cannot be read.
        """
        self._limits = limits or ServingLimits()
        usual = BodyLimit(self._limits.body_bytes, self._limits.body_seconds)
        self._serving = Serving.of(
            http, self._limits, BodyLimits(usual, bodies or {}), TrustedProxies(trusted_proxies), on_limit
        )
        self._websocket = websocket
        self._bind = (host, port, unix_path, self._limits.heartbeat_seconds)
        self._certificates = certificates
        self._tls = None if certificates is None else certificates.context()
        self._open: Counter[str] = Counter()
        self._connections = 0
        self._turning_away = 0
        self._accepting = trio.CancelScope()

    async def serve(self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
        """Bind, report the URLs, and serve until `drain` was called and the last connection has ended.

        When it is cancelled, sockets whose handlers did not close them are closed with 1012.

        Raises:
            OSError: the address cannot be bound.
        """
        with contextlib.ExitStack() as port:
            sockets = port.enter_context(listening(*self._bind))
            async with trio.open_nursery() as connections:
                with self._accepting:
                    async with trio.open_nursery() as accepting:
                        for sock in sockets:
                            accepting.start_soon(self._accept, sock, connections)
                        task_status.started([url_of(sock, secure=self._tls is not None) for sock in sockets])
                port.close()

    def drain(self) -> None:
        """Stop accepting, close idle connections, end the others after what they are answering.

        WebSockets go on; their handlers close them.
        """
        self._accepting.cancel()
        self._serving.drain()

    def reload_certificates(self) -> None:
        """Read the certificate files again, for connections from now on.

        Raises:
            OSError: they cannot be read; the ones before stay in use.
        """
        if self._certificates is not None:
            self._tls = self._certificates.context()

    def statistics(self) -> ServingStatistics:
        """Return what is open now and what was counted since the start."""
        serving = self._serving
        return ServingStatistics(
            connections=self._connections,
            websockets=serving.websockets,
            requests=serving.requests,
            accepted=serving.accepted,
            requests_total=serving.requests_total,
            websockets_total=serving.websockets_total,
            refused=serving.refused,
            rate_limited=serving.rate_limited,
            rate_addresses=len(serving.rates),
            crashed=serving.crashed,
            draining=serving.draining,
        )

    # -- accepting -----------------------------------------------------------------------------------

    async def _accept(self, listening_socket: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listening_socket)
            for _ in range(_ACCEPT_AT_ONCE):
                try:
                    sock, name = listening_socket.accept()
                except BlockingIOError:
                    break
                except OSError as error:  # the peer gave up, or the system is full: the next may come
                    if error.errno != errno.ECONNABORTED:
                        logger.warning("cannot accept: %s", error)
                        await trio.sleep(_FULL_SECONDS)
                    break
                sock.setblocking(False)
                self._admit(sock, UNIX if sock.family == socket.AF_UNIX else name[0], nursery)

    def _admit(self, sock: socket.socket, address: str, nursery: trio.Nursery) -> None:
        self._serving.accepted += 1
        key = rate_key(address)
        problem: Problem | None = None
        if self._connections >= self._limits.connections:
            problem = Problem.of(503, "too_many_connections", retry_after=1)
        elif self._open[key] >= self._limits.connections_per_address and address not in self._serving.proxies:
            problem = Problem.of(429, "too_many_connections", retry_after=1)
        if problem is None:
            self._connections += 1
            self._open[key] += 1
            nursery.start_soon(self._run, sock, address, key)
            return
        self._serving.refused += 1
        self._serving.on_limit("connections", address)
        if self._tls is not None or self._turning_away >= _TURN_AWAY_AT_ONCE:
            sock.close()
        else:
            self._turning_away += 1
            nursery.start_soon(self._turn_away, sock, address, problem)

    async def _turn_away(self, sock: socket.socket, address: str, problem: Problem) -> None:
        wire = SocketWire(sock, self._limits.write_seconds)
        try:
            with barrier("connection", address, self._serving.count_crash):
                await self._answer(wire, problem.response())
        finally:
            self._turning_away -= 1
            wire.abort()

    # -- one connection ------------------------------------------------------------------------------

    async def _run(self, sock: socket.socket, address: str, key: str) -> None:
        wire: Wire | None = None
        try:
            with barrier("connection", address, self._serving.count_crash, WireBroken):
                if self._tls is None:
                    wire = SocketWire(sock, self._limits.write_seconds)
                else:
                    with trio.move_on_after(self._limits.tls_seconds):
                        wire = await encrypt(sock, self._tls, self._limits.write_seconds)
                if wire is not None:
                    await self._serve(wire, address)
        finally:
            if wire is not None:
                wire.abort()
            sock.close()
            self._connections -= 1
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    async def _serve(self, wire: Wire, address: str) -> None:
        handshake = await self._http(wire, address)
        if handshake is None:
            return
        self._serving.websockets_total += 1
        self._serving.websockets += 1
        try:
            await self._shake(handshake)
        finally:
            self._serving.websockets -= 1

    async def _http(self, wire: Wire, address: str) -> Handshake | None:
        """Serve HTTP until the connection ends or asks, validly, for a WebSocket."""
        async with trio.open_nursery() as nursery:
            protocol = HTTP2 if wire.protocol == "h2" else HTTP1
            connection = protocol(wire, self._serving, address, nursery)
            await connection.run()
            if connection.upgrade is None:
                await wire.finish(self._limits.close_seconds)
                return None
        try:
            return self._handshake(wire, address, *connection.upgrade)
        except Refused as refused:
            await self._answer(wire, refused.response)
            return None

    def _handshake(self, wire: Wire, address: str, request: h11.Request, early: bytes) -> Handshake:
        headers = Headers(request.headers)
        client = self._serving.proxies.client(address, headers, secure=wire.secure)
        problem = self._serving.rate_limit(client.address)
        if problem is None and self._serving.draining:
            problem = Problem.of(503, "draining", retry_after=1)
        if problem is not None:
            raise Refused(problem.response())
        return Handshake(request, early, wire, self._limits, peer=client.address)

    async def _answer(self, wire: Wire, response: bytes) -> None:
        try:
            await wire.send(response)
        except WireBroken:
            return
        await wire.finish(self._limits.close_seconds)

    async def _shake(self, handshake: Handshake) -> None:
        """Run the handler, and give the peer the answer or the close code that the handler did not give."""
        status, code = 500, 1011
        try:
            with trio.CancelScope(deadline=trio.current_time() + self._limits.handshake_seconds) as patience:
                handshake.patience = patience
                with barrier("socket", handshake.peer, self._serving.count_crash, SocketClosed, WireBroken):
                    await self._websocket(handshake)
                    code = 1000
            if patience.cancelled_caught:
                status = 503
        except trio.Cancelled:
            status, code = 503, 1012
            raise
        finally:
            with cleanup_scope(self._limits.close_seconds):
                if handshake.socket is not None:
                    await handshake.socket.close(code)
                elif not handshake.answered:
                    await handshake.refuse(status)
