"""What a peer says in HTTP/2: frames by hand, and a client that behaves."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import hpack

from nurseries.serving import ServingLimits
from tests.serving.house import House, serving
from tests.serving.peer import Peer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK, PADDED, PRIORITIZED = 1, 4, 1, 8, 32
REQUEST = ((":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "test"))


def h2frame(
    kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", length: int | None = None
) -> bytes:
    """Return a frame; `length` lies about the payload's."""
    size = len(payload) if length is None else length
    return struct.pack("!I", size)[1:] + bytes((kind, flags)) + struct.pack("!I", stream) + payload


def headers(*items: tuple[str, str], stream: int = 1, flags: int = END_STREAM | END_HEADERS) -> bytes:
    """Return a HEADERS frame."""
    return h2frame(HEADERS, flags, stream, hpack.Encoder().encode(items))


def request(path: str = "/", method: str = "GET") -> tuple[tuple[str, str], ...]:
    """Return the headers of a request."""
    return ((":method", method), (":path", path), *REQUEST[2:])


SETUP = PREFACE + h2frame(SETTINGS)


def quick(certificates, **options):
    limits = options.pop("limits", ServingLimits(close_seconds=0.2, head_seconds=1))
    return serving(limits, certificates=certificates.files, client_tls=certificates.client, **options)


class Client:
    """A well-behaved HTTP/2 client."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.status: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.reset: dict[int, int] = {}
        self.terminated: int | None = None

    async def flush(self) -> None:
        await self.peer.send(self.connection.data_to_send())

    async def ask(self, stream: int, path: str = "/", method: str = "GET", *, end: bool = True) -> None:
        self.connection.send_headers(stream, request(path, method), end_stream=end)
        await self.flush()

    async def read(self, *, acknowledge: bool = True) -> bool:
        data = await self.peer.stream.receive_some(65_536)
        if not data:
            return False
        for event in self.connection.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    self.status[event.stream_id] = int(dict(event.headers)[":status"])
                case h2.events.DataReceived():
                    self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                    if acknowledge:
                        self.connection.acknowledge_received_data(
                            event.flow_controlled_length, event.stream_id
                        )
                case h2.events.StreamEnded():
                    self.ended.add(event.stream_id)
                case h2.events.StreamReset():
                    self.reset[event.stream_id] = event.error_code
                case h2.events.ConnectionTerminated():
                    self.terminated = event.error_code
        await self.flush()
        return True

    async def until(self, *streams: int) -> None:
        while not self.ended | self.reset.keys() >= set(streams):
            assert await self.read()


@asynccontextmanager
async def client(house: House) -> AsyncIterator[Client]:
    async with house.connect("h2") as peer:
        made = Client(peer)
        made.connection.initiate_connection()
        await made.flush()
        yield made
