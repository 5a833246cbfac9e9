"""A real server on port 0, raw clients that say whatever they like, and an innocent bystander."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio
from quart import Response, request
from quart_trio import QuartTrio

from nurseries.serving import Binary, Handshake, Listener, ServingLimits, ServingStatistics
from tests.serving.peer import PING, PONG, TEXT, UPGRADE, Peer, frame

PATIENCE_SECONDS = 300
"""For one test, so that one whose server does too little fails, and does not hang."""


def make_app(events: list[str]) -> QuartTrio:  # a route for each way to behave
    """Return an application with a route for each way to behave; `events` records how handlers ended."""
    app = QuartTrio("house")
    app.config["RESPONSE_TIMEOUT"] = None
    app.logger.disabled = True

    @app.get("/")
    async def index() -> str:
        return "ok"

    @app.post("/length")
    async def length() -> str:
        return str(len(await request.get_data()))

    @app.get("/crash")
    async def crash() -> str:
        raise RuntimeError("a handler failed")

    @app.get("/exit")
    async def leave() -> str:
        raise SystemExit(3)

    @app.get("/client")
    async def client() -> dict:
        return {"address": request.remote_addr, "scheme": request.scheme}

    @app.get("/big")
    async def big() -> bytes:
        return b"x" * int(request.args.get("bytes", 1 << 20))

    @app.get("/wait")
    async def wait() -> str:
        events.append("began")
        try:
            await trio.sleep_forever()
        finally:
            events.append("ended")
        raise AssertionError

    @app.get("/stream")
    async def stream() -> Response:
        async def body() -> AsyncIterator[bytes]:
            events.append("began")
            try:
                while True:
                    yield b"data: x\n\n"
                    await trio.sleep(0.01)
            finally:
                events.append("ended")

        return Response(body(), content_type="text/event-stream")

    @app.get("/endless")
    async def endless() -> Response:
        async def body() -> AsyncIterator[bytes]:
            events.append("began")
            try:
                while True:
                    yield b"x" * 65_536
            finally:
                events.append("ended")

        return Response(body(), content_type="application/octet-stream")

    return app


async def echo(handshake: Handshake) -> None:
    """Echo; some messages ask for more than that."""
    websocket = await handshake.accept("house" if "house" in handshake.subprotocols else None)
    while True:
        message = await websocket.receive()
        if message == "crash":
            raise RuntimeError("a handler failed")
        if message == "exit":
            raise SystemExit(3)
        if message == "return":
            return
        if message == "flood me":
            while True:
                await websocket.send([b"x" * 1000] * 100)
        await websocket.send([message.encode() if isinstance(message, str) else Binary(message)])


def taking_one(ended: trio.Event) -> Callable[[Handshake], Awaitable[None]]:
    """Return a handler that takes one message and no more; it sets `ended` when it learns that its peer has left.

    On `/ws` it echoes, as the bystander expects.
    """

    async def handler(handshake: Handshake) -> None:
        if handshake.path == "/ws":
            await echo(handshake)
            return
        websocket = await handshake.accept()
        await websocket.receive()
        await websocket.wait_left()
        ended.set()

    return handler


@attrs.define
class House:
    """A running server.

    Attributes:
        listener: the server.
        port: where it listens.
        urls: as it reported them.
        events: what its handlers recorded.
        server_scope: cancels the server.
    """

    listener: Listener
    port: int
    urls: list[str]
    events: list[str]
    server_scope: trio.CancelScope
    client_tls: ssl.SSLContext | None = None

    @property
    def statistics(self) -> ServingStatistics:
        return self.listener.statistics()

    @asynccontextmanager
    async def connect(self, alpn: str = "http/1.1") -> AsyncIterator[Peer]:
        """Open a raw connection."""
        stream = transport = await self._open()
        try:
            if self.client_tls is not None:
                self.client_tls.set_alpn_protocols([alpn])
                stream = trio.SSLStream(
                    stream, self.client_tls, server_hostname="127.0.0.1", https_compatible=True
                )
                await stream.do_handshake()
            yield Peer(stream)
        finally:
            await trio.aclose_forcefully(transport)

    async def _open(self) -> trio.abc.Stream:
        scheme, _, place = self.urls[0].partition("://")
        if scheme.endswith("unix"):
            return await trio.open_unix_socket(place)
        return await trio.open_tcp_stream("::1" if place.startswith("[") else "127.0.0.1", self.port)

    @asynccontextmanager
    async def websocket(self, headers: bytes = b"") -> AsyncIterator[Peer]:
        """Open a WebSocket."""
        async with self.connect() as peer:
            await peer.send(UPGRADE + headers + b"\r\n")
            head = await peer.head()
            assert head.startswith(b"HTTP/1.1 101"), head
            yield peer

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the server's own state holds."""
        with trio.fail_after(60):
            while not condition():  # noqa: ASYNC110  # the server has no events for what tests ask
                await trio.sleep(0.005)

    async def wait_alone(self) -> None:
        """Wait until only the bystander is connected."""
        await self.wait_for(lambda: self.statistics.connections == 1)


async def _answer_pings(peer: Peer, texts: trio.MemorySendChannel) -> None:
    while True:
        opcode, payload = await peer.frame()
        if opcode == PING:
            await peer.send(frame(payload, PONG))
        else:
            await texts.send((opcode, payload))


@asynccontextmanager
async def serving(
    limits: ServingLimits | None = None,
    *,
    websocket=echo,
    crashes: int = 0,
    bystander: bool = True,
    http=None,
    client_tls: ssl.SSLContext | None = None,
    **options: object,
) -> AsyncIterator[House]:
    """Run a server; at the end its bystander must not have noticed anything.

    Args:
        limits: of the server.
        websocket: its handler.
        crashes: how many handlers are expected to fail; nothing else may.
        bystander: whether there is one; it speaks before and after.
        http: the application, else the usual one.
        client_tls: how clients connect to a server with certificates.
        options: of the listener.
    """
    events: list[str] = []
    listener = Listener(http=http or make_app(events), websocket=websocket, port=0, limits=limits, **options)
    # Where the clock jumps these are the clock's seconds: what waits for ever fails at once.
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def serve(task_status: trio.TaskStatus) -> None:
                with scope:
                    await listener.serve(task_status=task_status)

            urls = await nursery.start(serve)
            port = int(urls[0].rpartition(":")[2]) if "unix" not in urls[0] else 0
            house = House(listener, port, urls, events, scope, client_tls)
            if bystander:
                async with house.websocket() as innocent, trio.open_nursery() as beside:
                    sender, receiver = trio.open_memory_channel(10)
                    await innocent.send(frame(b"before"))
                    beside.start_soon(_answer_pings, innocent, sender)
                    assert await receiver.receive() == (TEXT, b"before")
                    yield house
                    if not house.statistics.draining:
                        await innocent.send(frame(b"after"))
                        with trio.fail_after(60):
                            assert await receiver.receive() == (TEXT, b"after")
                    beside.cancel_scope.cancel()
            else:
                yield house
            assert listener.statistics().crashed == crashes
            nursery.cancel_scope.cancel()
