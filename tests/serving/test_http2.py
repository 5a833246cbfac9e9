"""HTTP/2: concurrent answers, real backpressure, and everything a peer can send that it should not."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import h2.config
import h2.connection
import h2.errors
import h2.events
import hpack
import pytest
import trio

from nurseries.serving import ServingLimits
from tests.serving.house import House, Peer, serving

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

HOSTILE = {
    "no_preface": b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
    "preface_cut": PREFACE[:10] + b"xxxx",
    "garbage": PREFACE + b"\xff" * 500,
    "frame_unknown": SETUP + h2frame(0xBB, 0xFF, 1, b"x" * 100),
    "frame_huge": SETUP + h2frame(DATA, 0, 1, b"", length=2**24 - 1),
    "data_on_idle_stream": SETUP + h2frame(DATA, 0, 1, b"x"),
    "data_on_stream_0": SETUP + h2frame(DATA, 0, 0, b"x"),
    "data_late": SETUP + headers(*REQUEST) + h2frame(DATA, 0, 1, b"late"),
    "data_padding": SETUP
    + headers(*request("/length", "POST"), flags=END_HEADERS)
    + h2frame(DATA, PADDED, 1, b"\xffx"),
    "headers_on_stream_0": SETUP + headers(*REQUEST, stream=0),
    "headers_even_stream": SETUP + headers(*REQUEST, stream=2),
    "headers_backwards": SETUP + headers(*REQUEST, stream=5) + headers(*REQUEST, stream=3),
    "headers_twice": SETUP + headers(*REQUEST, flags=END_HEADERS) + headers(*REQUEST, flags=END_HEADERS),
    "headers_hpack_junk": SETUP + h2frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xff" * 100),
    "headers_hpack_index": SETUP + h2frame(HEADERS, END_STREAM | END_HEADERS, 1, b"\xbf\xff\xff\x03"),
    "headers_table_bomb": SETUP
    + h2frame(
        HEADERS, END_STREAM | END_HEADERS, 1, b"\x40\x01a\x7f\x81\x1f" + b"x" * 4_000 + b"\xbe" * 10_000
    ),
    "headers_no_pseudo": SETUP + headers(("x", "y")),
    "headers_no_method": SETUP + headers(*REQUEST[1:]),
    "headers_no_path": SETUP + headers(REQUEST[0], *REQUEST[2:]),
    "headers_two_paths": SETUP + headers(*REQUEST, (":path", "/other")),
    "headers_unknown_pseudo": SETUP + headers(*REQUEST[:3], (":nonsense", "x")),
    "headers_pseudo_late": SETUP + headers(("x", "y"), *REQUEST),
    "headers_empty_path": SETUP + headers(*request("")),
    "headers_uppercase": SETUP + headers(*REQUEST, ("X-Upper", "y")),
    "headers_connection": SETUP + headers(*REQUEST, ("connection", "close")),
    "headers_transfer_encoding": SETUP + headers(*REQUEST, ("transfer-encoding", "chunked")),
    "headers_control_bytes": SETUP + headers(*REQUEST, ("x", "a\r\nb: c")),
    "headers_empty_name": SETUP + headers(*REQUEST, ("", "y")),
    "headers_depend_on_self": SETUP
    + h2frame(
        HEADERS,
        END_STREAM | END_HEADERS | PRIORITIZED,
        1,
        b"\0\0\0\x01\x10" + hpack.Encoder().encode(REQUEST),
    ),
    "length_not_a_number": SETUP + headers(*request("/length", "POST"), ("content-length", "five")),
    "length_wrong": SETUP
    + headers(*request("/length", "POST"), ("content-length", "5"), flags=END_HEADERS)
    + h2frame(DATA, END_STREAM, 1, b"too long"),
    "continuation_alone": SETUP + h2frame(CONTINUATION, END_HEADERS, 1, b""),
    "continuation_flood": SETUP
    + headers(*REQUEST, flags=END_STREAM)
    + h2frame(CONTINUATION, 0, 1, b"x") * 2_000,
    "continuation_interrupted": SETUP
    + headers(*REQUEST, flags=END_STREAM)
    + h2frame(PING, 0, 0, b"12345678"),
    "settings_odd_length": PREFACE + h2frame(SETTINGS, 0, 0, b"12345"),
    "settings_on_stream": PREFACE + h2frame(SETTINGS, 0, 1),
    "settings_ack_with_payload": SETUP + h2frame(SETTINGS, ACK, 0, b"123456"),
    "settings_push_2": PREFACE + h2frame(SETTINGS, 0, 0, struct.pack("!HI", 2, 2)),
    "settings_window_huge": PREFACE + h2frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 2**32 - 1)),
    "settings_frame_size": PREFACE + h2frame(SETTINGS, 0, 0, struct.pack("!HI", 5, 1)),
    "settings_flood": SETUP + h2frame(SETTINGS) * 5_000,
    "ping_short": SETUP + h2frame(PING, 0, 0, b"x"),
    "ping_on_stream": SETUP + h2frame(PING, 0, 1, b"12345678"),
    "ping_flood": SETUP + h2frame(PING, 0, 0, b"12345678") * 5_000,
    "window_zero": SETUP + h2frame(WINDOW, 0, 0, b"\0\0\0\0"),
    "window_overflow": SETUP + h2frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 2,
    "window_of_idle_stream": SETUP + h2frame(WINDOW, 0, 7, b"\0\0\0\x01"),
    "rst_of_idle_stream": SETUP + h2frame(RST, 0, 7, b"\0\0\0\x08"),
    "rst_on_stream_0": SETUP + h2frame(RST, 0, 0, b"\0\0\0\x08"),
    "priority_short": SETUP + h2frame(PRIORITY, 0, 1, b"x"),
    "priority_on_self": SETUP + h2frame(PRIORITY, 0, 1, b"\0\0\0\x01\x10"),
    "priority_storm": SETUP
    + b"".join(h2frame(PRIORITY, 0, 2 * i + 1, struct.pack("!IB", 2 * i + 3, 16)) for i in range(5_000)),
    "push_promise": SETUP + h2frame(PUSH, END_HEADERS, 1, b"\0\0\0\x02"),
    "goaway": SETUP + h2frame(GOAWAY, 0, 0, b"\0" * 8),
    "goaway_short": SETUP + h2frame(GOAWAY, 0, 0, b"\0"),
    "empty_data_flood": SETUP
    + headers(*request("/length", "POST"), flags=END_HEADERS)
    + h2frame(DATA, 0, 1, b"") * 5_000,
    "rapid_reset": SETUP
    + b"".join(
        headers(*request("/wait"), stream=2 * i + 1) + h2frame(RST, 0, 2 * i + 1, b"\0\0\0\x08")
        for i in range(3_000)
    ),
    "streams_too_many": SETUP + b"".join(headers(*request("/wait"), stream=2 * i + 1) for i in range(200)),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_bytes(name, certificates, caplog):
    """Every input leaves the server, its log and the bystander as they were."""
    async with quick(certificates) as house:
        async with house.connect("h2") as peer:
            with trio.fail_after(30):
                await peer.send_anyway(HOSTILE[name])
                await peer.send_anyway(h2frame(PING, 0, 0, b"are you?"))
                await peer.send_anyway(h2frame(GOAWAY, 0, 0, b"\0" * 8))
                await peer.rest()
        await house.wait_alone()
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["settings_flood", "ping_flood", "priority_storm", "empty_data_flood", "rapid_reset"]
)
async def test_storms_are_ended(name, certificates):
    """Frames that cost the peer nothing are not worked through without end: ENHANCE_YOUR_CALM."""
    async with quick(certificates) as house, client(house) as made:
        await made.peer.send_anyway(HOSTILE[name][len(SETUP) :])
        with suppress(trio.BrokenResourceError):
            while made.terminated is None:
                assert await made.read()
        assert made.terminated == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


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


async def test_answers_at_the_same_time(certificates):
    """A quick request overtakes a slow one, and a large answer is not mixed with a small one."""
    async with quick(certificates) as house, client(house) as made:
        await made.ask(1, "/wait")
        await made.ask(3, "/big?bytes=300000")
        await made.ask(5)
        await made.ask(7, "/nope")
        await made.ask(9, "/length", "POST", end=False)
        made.connection.send_data(9, b"hello", end_stream=True)
        await made.flush()
        await made.until(3, 5, 7, 9)
        assert made.status == {3: 200, 5: 200, 7: 404, 9: 200}
        assert (made.bodies[3], made.bodies[5], made.bodies[9]) == (b"x" * 300_000, b"ok", b"5")
        made.connection.reset_stream(1)
        await made.flush()
        await house.wait_for(lambda: house.events == ["began", "ended"])


async def test_closed_window_holds_the_application_back(certificates):
    """An application does not produce what its peer has no window for, and goes on when it has."""
    produced = [0]

    async def http(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 16_384, "more_body": True})
            produced[0] += 1
        await send({"type": "http.response.body", "body": b""})

    async with quick(certificates, http=http) as house, client(house) as made:
        await made.ask(1)
        while len(made.bodies.get(1, b"")) < 65_535:
            await made.read(acknowledge=False)
        await trio.testing.wait_all_tasks_blocked()
        assert produced[0] == 3
        made.connection.increment_flow_control_window(2**24)
        made.connection.increment_flow_control_window(2**24, 1)
        await made.flush()
        await made.until(1)
        assert len(made.bodies[1]) == 100 * 16_384


async def test_window_that_stays_closed(certificates, autojump_clock):
    """A stream that takes nothing for the write deadline is reset; the connection goes on."""
    async with quick(certificates, limits=ServingLimits()) as house, client(house) as made:
        await made.ask(1, "/endless")
        while 1 not in made.reset:
            assert await made.read(acknowledge=False)
        await house.wait_for(lambda: house.events == ["began", "ended"])
        assert house.statistics.connections == 2


async def test_body_over_the_limit(certificates):
    """Too large a body is answered 413."""
    async with quick(certificates) as house, client(house) as made:
        await made.ask(1, "/length", "POST", end=False)
        sent = 0
        while 1 not in made.status:
            if made.connection.local_flow_control_window(1) >= 16_384:
                made.connection.send_data(1, b"x" * 16_384)
                sent += 16_384
                await made.flush()
            else:
                await made.read()
        assert made.status[1] == 413
        assert sent <= (1 << 20) + 65_536 + 16_384


async def test_slow_body(certificates, autojump_clock):
    """A body that does not come is answered 408."""
    async with quick(certificates) as house, client(house) as made:
        await made.ask(1, "/length", "POST", end=False)
        await made.until(1)
        assert made.status[1] == 408


async def test_idle_connection_is_closed(certificates, autojump_clock):
    """A connection without requests is closed, with a GOAWAY."""
    async with quick(certificates) as house, client(house) as made:
        await made.ask(1)
        await made.until(1)
        while await made.read():
            pass
        assert made.terminated == 0


async def test_failing_handler(certificates):
    """A handler that fails gives 500 on its stream alone."""
    async with quick(certificates, crashes=1) as house, client(house) as made:
        await made.ask(1, "/exit")
        await made.ask(3, "/big?bytes=100000")
        await made.until(1, 3)
        assert made.status == {1: 500, 3: 200}


async def test_rate_of_an_address(certificates):
    """Above its rate an address gets 429 on each stream."""
    limits = ServingLimits(requests_per_second=1, request_burst=2)
    async with quick(certificates, limits=limits) as house, client(house) as made:
        for stream in (1, 3, 5):
            await made.ask(stream)
        await made.until(1, 3, 5)
        assert sorted(made.status.values()) == [200, 429, 429]


async def test_drain(certificates):
    """Draining refuses new streams, completes the others, and says GOAWAY."""
    answer = trio.Event()

    async def http(scope, receive, send):
        await answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with quick(certificates, http=http) as house, client(house) as made:
        await made.ask(1)
        await house.wait_for(lambda: house.statistics.requests == 1)
        house.listener.drain()
        await made.ask(3)
        while 3 not in made.reset:
            await made.read()
        answer.set()
        await made.until(1)
        assert made.status == {1: 200}
        while made.terminated is None:
            await made.read()


async def test_disconnect_reaches_the_handlers(certificates):
    """When the connection goes, all its handlers end."""
    async with quick(certificates) as house:
        async with client(house) as made:
            await made.ask(1, "/wait")
            await made.ask(3, "/wait")
            await house.wait_for(lambda: house.events == ["began", "began"])
        await house.wait_for(lambda: house.events == ["began", "began", "ended", "ended"])
