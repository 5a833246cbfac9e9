"""A real server on port 0, raw clients that say whatever they like, and an innocent bystander."""

import base64
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import attrs
import trio
from quart import Response, request
from quart_trio import QuartTrio

from nurseries.serving import Handshake, Listener, ServingLimits, ServingStatistics

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = base64.b64encode(b"0123456789abcdef")
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: test\r\n"


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
        if isinstance(message, str):
            await websocket.send([message.encode()])
        else:
            await websocket.send_binary([message])


def frame(
    payload: bytes = b"",
    opcode: int = TEXT,
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x01\x02\x03\x04",
    length: int | None = None,
) -> bytes:
    """Return a client's frame; `length` lies about the payload's."""
    size = len(payload) if length is None else length
    head = bytes((fin << 7 | rsv << 4 | opcode,))
    masked = 0x80 if mask is not None else 0
    if size < 126:
        head += bytes((masked | size,))
    elif size < 65_536:
        head += bytes((masked | 126,)) + struct.pack("!H", size)
    else:
        head += bytes((masked | 127,)) + struct.pack("!Q", size)
    if mask is None:
        return head + payload
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    body = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")
    return head + mask + body


class Peer:
    """A client's raw connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_anyway(self, data: bytes) -> None:
        """Send, unless the server has hung up already."""
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    async def more(self) -> bool:
        """Read; tell whether there was something."""
        try:
            data = await self.stream.receive_some(65_536)
        except trio.BrokenResourceError:
            return False
        self.buffer += data
        return bool(data)

    async def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not await self.more():
                raise EOFError
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    async def rest(self) -> bytes:
        """Read to the end."""
        while await self.more():
            pass
        data, self.buffer = self.buffer, b""
        return data

    async def head(self) -> bytes:
        while b"\r\n\r\n" not in self.buffer:
            if not await self.more():
                break
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    async def response(self) -> tuple[int, bytes, bytes]:
        """Return status, head and body of a response with a Content-Length."""
        head = await self.head()
        if not head:
            raise EOFError
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return int(head.split(b" ")[1]), head, await self.take(length)

    async def status(self) -> int:
        """Return the status of the next response, 0 when the connection was closed without one."""
        try:
            return (await self.response())[0]
        except EOFError:
            return 0

    async def frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame."""
        first, second = await self.take(2)
        size = second & 127
        if size == 126:
            (size,) = struct.unpack("!H", await self.take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.take(8))
        return first & 15, await self.take(size)

    async def close_code(self) -> int:
        """Return the code of the close frame, 1006 when there is none; other frames are skipped."""
        try:
            while True:
                opcode, payload = await self.frame()
                if opcode == CLOSE:
                    return struct.unpack("!H", payload[:2])[0] if payload else 1005
        except EOFError:
            return 1006

    async def echo(self, text: bytes) -> bytes:
        """Send a text and return the next text that comes."""
        await self.send(frame(text))
        while True:
            opcode, payload = await self.frame()
            if opcode == TEXT:
                return payload

    async def reset(self) -> None:
        """Hang up with a RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()


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
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        if self.client_tls is not None:
            self.client_tls.set_alpn_protocols([alpn])
            stream = trio.SSLStream(
                stream, self.client_tls, server_hostname="127.0.0.1", https_compatible=True
            )
            await stream.do_handshake()
        try:
            yield Peer(stream)
        finally:
            await trio.aclose_forcefully(stream)

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
