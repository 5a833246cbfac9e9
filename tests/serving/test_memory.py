"""Whatever peers do, the server's memory stays within 20 MB of what it was."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from subprocess import PIPE

import attrs
import psutil
import pytest
import trio

from tests.serving.http2_peer import Client
from tests.serving.peer import BINARY, PING, TEXT, UPGRADE, Peer, frame
from tests.serving.test_hostile_websocket import CONT, bomb

ROOM = 20 << 20


@attrs.define
class Server:
    """A server in another process."""

    port: int
    process: psutil.Process
    tls: object = None

    @asynccontextmanager
    async def connect(self, alpn: str = "http/1.1") -> AsyncIterator[Peer]:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        if self.tls is not None:
            self.tls.set_alpn_protocols([alpn])
            stream = trio.SSLStream(stream, self.tls, server_hostname="127.0.0.1", https_compatible=True)
            await stream.do_handshake()
        try:
            yield Peer(stream)
        finally:
            await trio.aclose_forcefully(stream)

    @asynccontextmanager
    async def websocket(self, headers: bytes = b"") -> AsyncIterator[Peer]:
        async with self.connect() as peer:
            await peer.send(UPGRADE + headers + b"\r\n")
            assert (await peer.head()).startswith(b"HTTP/1.1 101")
            yield peer

    async def crowd(self, count: int, behave: Callable[[], Awaitable[None]], seconds: float) -> int:
        """Let so many behave like that, for at most `seconds`; return the most memory that was seen."""
        most = 0
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    nonlocal most
                    while True:
                        most = max(most, self.process.memory_info().rss)
                        await trio.sleep(0.02)

                nursery.start_soon(watch)
                async with trio.open_nursery() as peers:
                    for _ in range(count):
                        peers.start_soon(behave)
                nursery.cancel_scope.cancel()
        return most


@asynccontextmanager
async def running(how: str = "app", *arguments: str, tls: object = None) -> AsyncIterator[Server]:
    command = [sys.executable, "-m", "tests.serving.memory_server", how, *arguments]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, stdout=PIPE, check=False))
        line = b""
        while not line.endswith(b"\n"):
            data = await process.stdout.receive_some()
            assert data, "the server ended before it listened"
            line += data
        yield Server(int(line), psutil.Process(process.pid), tls)
        process.kill()


async def stays_flat(
    server: Server, count: int, behave: Callable[[], Awaitable[None]], seconds: float
) -> None:
    """Warm up with a few, then see that many take no more memory, and that the bystander is still served."""
    async with server.websocket() as bystander:
        assert await bystander.echo(b"before") == b"before"
        await server.crowd(2, behave, 0.5)
        baseline = server.process.memory_info().rss
        most = await server.crowd(count, behave, seconds)
        assert most - baseline < ROOM
        with trio.fail_after(10):
            assert await bystander.echo(b"after") == b"after"


async def test_flood_of_messages():
    """Messages as fast as they can be sent."""
    async with running() as server:

        async def behave() -> None:
            async with server.websocket() as peer, trio.open_nursery() as nursery:

                async def send() -> None:
                    data = frame(b"x" * 1_000) * 100
                    while True:
                        await peer.send(data)

                nursery.start_soon(send)
                while await peer.more():
                    peer.buffer = b""

        await stays_flat(server, 20, behave, 3)


@pytest.mark.parametrize("opcode", [TEXT, PING])
async def test_flood_of_the_smallest_frames(opcode):
    """A hundred, each held back for its rate: what they have sent is not taken apart before its time."""
    async with running("limited") as server:

        async def behave() -> None:
            async with server.websocket() as peer:
                while True:
                    await peer.send(frame(b"", opcode) * 2_000)

        await stays_flat(server, 100, behave, 3)


async def test_messages_whose_echo_nobody_reads():
    """A peer that sends for ever and never reads is held back."""
    async with running() as server:

        async def behave() -> None:
            async with server.websocket() as peer:
                while True:
                    await peer.send(frame(b"x" * 100_000))

        await stays_flat(server, 20, behave, 3)


@pytest.mark.parametrize("size", [0, 1, 60_000])
async def test_endless_fragments(size):
    """A message that never ends grows to its limit, and after 1009 nothing is collected."""
    async with running() as server:

        async def behave() -> None:
            async with server.websocket() as peer:
                await peer.send(frame(b"", BINARY, fin=False))
                data = frame(b"x" * size, CONT, fin=False) * (100 if size < 100 else 1)
                while True:
                    await peer.send(data)

        async def until_closed() -> None:
            with suppress(trio.BrokenResourceError):
                await behave()

        await stays_flat(server, 30, until_closed, 3)


async def test_compression_bombs():
    """64 MB in 64 KB, ten times at once."""
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    data = frame(bomb(), rsv=4)
    async with running() as server:

        async def behave() -> None:
            async with server.websocket(offer) as peer:
                await peer.send_anyway(data)
                assert await peer.close_code() == 1009

        await stays_flat(server, 10, behave, 30)


@pytest.mark.parametrize("what", ["http", "websocket"])
async def test_peers_that_never_read(what):
    """A hundred who ask for everything and read nothing; the bystander is answered meanwhile."""
    async with running() as server:

        async def behave() -> None:
            async with server.connect() as peer:
                if what == "http":
                    await peer.send(b"GET /endless HTTP/1.1\r\nHost: test\r\n\r\n")
                else:
                    await peer.send(UPGRADE + b"\r\n" + frame(b"flood me"))
                await trio.sleep_forever()

        await stays_flat(server, 100, behave, 3)


async def test_bodies_that_never_end():
    """Request bodies without end."""
    async with running() as server:

        async def behave() -> None:
            async with server.connect() as peer:
                await peer.send(b"POST /crash HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    await peer.send_anyway(b"1000\r\n" + b"x" * 4_096 + b"\r\n")
                    await trio.lowlevel.checkpoint()

        await stays_flat(server, 10, behave, 3)


async def test_bodies_of_single_bytes():
    """Chunks of one byte each, for an application that takes its time."""
    async with running("lazy") as server:

        async def behave() -> None:
            async with server.connect() as peer:
                await peer.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    await peer.send(b"1\r\nx\r\n" * 2_000)

        await stays_flat(server, 5, behave, 4)


async def test_http2_peers_with_a_closed_window(certificates):
    """Ten connections, each with ten endless answers that it does not take."""
    directory = str(certificates.files.key.parent)
    async with running("app", directory, tls=certificates.client) as server:

        async def behave() -> None:
            async with server.connect("h2") as peer:
                client = Client(peer)
                client.connection.initiate_connection()
                for index in range(10):
                    await client.ask(2 * index + 1, "/endless")
                while await client.read(acknowledge=False):
                    pass

        await stays_flat(server, 10, behave, 3)
