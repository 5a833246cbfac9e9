"""A bad network: a TCP proxy that delays, slows, slices, resets and swallows what passes through it.

async with faulty(port, Faults(latency=0.1, slice_bytes=1)) as network:
    stream = await trio.open_tcp_stream("127.0.0.1", network.port)
    network.faults = Faults(black_hole=True)      # from now on nothing arrives any more
    network.reset_all()                           # RST to both sides
"""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio


@attrs.frozen
class Faults:
    """What is wrong with the network.

    Attributes:
        latency: seconds that every piece is late, each way.
        bytes_per_second: bandwidth each way; None is unlimited.
        slice_bytes: the largest piece that arrives at once; None leaves pieces as they are.
        black_hole: nothing arrives, and nobody is told.
    """

    latency: float = 0.0
    bytes_per_second: float | None = None
    slice_bytes: int | None = None
    black_hole: bool = False


@attrs.define(eq=False)
class Network:
    """A running proxy; `faults` may be replaced while it runs."""

    port: int
    faults: Faults
    streams: set[trio.SocketStream] = attrs.field(factory=set)

    def reset_all(self) -> None:
        """Reset every connection, towards both ends."""
        for stream in tuple(self.streams):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()

    async def serve(self, to_port: int, client: trio.SocketStream) -> None:
        """Carry one connection."""
        try:
            server = await trio.open_tcp_stream("127.0.0.1", to_port)
        except OSError:
            return
        self.streams |= {client, server}
        try:
            async with client, server, trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, client, server)
                await self._carry(server, client)
        finally:
            self.streams -= {client, server}

    async def _carry(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(self.faults.slice_bytes or 65_536):
                faults = self.faults
                if faults.black_hole:
                    await trio.sleep_forever()
                if faults.latency:
                    await trio.sleep(faults.latency)
                if faults.bytes_per_second is not None:
                    await trio.sleep(len(data) / faults.bytes_per_second)
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            for stream in (source, target):
                await trio.aclose_forcefully(stream)


@asynccontextmanager
async def faulty(port: int, faults: Faults) -> AsyncIterator[Network]:
    """Run a proxy in front of a port of this machine."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    network = Network(listener.socket.getsockname()[1], faults)

    async def carry(client: trio.SocketStream) -> None:
        await network.serve(port, client)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, carry, [listener])
        yield network
        nursery.cancel_scope.cancel()
