"""HTTP/2: what a peer within the protocol could have the server keep or do without end, and does not."""

import h2.settings
import pytest
import trio
from h2.errors import ErrorCodes

from nurseries.serving import BodyLimit, ServingLimits
from tests.serving import http2_peer
from tests.serving.http2_peer import REQUEST, SETTINGS, SETUP, client, h2frame, headers, quick, request

UNLIMITED = ServingLimits(requests_per_second=1e6, request_burst=10**6, http2_control_frames=50)


async def test_peer_that_remembers_all_headers(certificates):
    """However much it offers to remember: what it is given to remember, and is searched each time, stays small."""
    async with quick(certificates, limits=UNLIMITED) as house, client(house) as made:
        made.connection.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 2**24})
        for index in range(200):
            await made.ask(2 * index + 1, f"/big?bytes={index}")
            await made.until(2 * index + 1)
        assert made.connection.decoder.header_table_size == 4_096
        assert len(made.connection.decoder.header_table.dynamic_entries) <= 4_096 // 32


async def test_updates_that_answer_data_are_free(certificates):
    """A client that gives back each piece at once, twice, is no flood, however long its download."""
    size = 3_000_000
    async with quick(certificates, limits=UNLIMITED) as house, client(house) as made:
        await made.ask(1, f"/big?bytes={size}")
        taken = updates = 0
        while 1 not in made.ended:
            assert await made.read(acknowledge=False)
            assert made.terminated is None
            new = len(made.bodies.get(1, b"")) - taken
            if new:
                taken += new
                made.connection.increment_flow_control_window(new)
                updates += 1
                if 1 not in made.ended:
                    made.connection.increment_flow_control_window(new, 1)
                    updates += 1
                await made.flush()
        assert taken == size
        assert updates > 2 * UNLIMITED.http2_control_frames


async def test_a_window_that_opens_byte_by_byte(certificates):
    """Data that a peer has sent to it byte by byte is sent so, until it has cost enough."""
    async with quick(certificates, limits=UNLIMITED) as house, client(house) as made:
        made.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1})
        await made.ask(1, "/big?bytes=1000")
        while made.terminated is None:
            assert await made.read(acknowledge=False)
            if made.terminated is None and made.bodies.get(1):
                made.connection.increment_flow_control_window(1, 1)
                await made.flush()
        assert made.terminated == ErrorCodes.ENHANCE_YOUR_CALM
        assert 1 < len(made.bodies[1]) < 200


async def test_no_extension_is_offered(certificates):
    """An application that sent trailers or pushes would send them to nobody, so it is not told that it may."""
    offered = []

    async def http(scope, receive, send):
        offered.append(scope["extensions"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with quick(certificates, http=http) as house, client(house) as made:
        await made.ask(1)
        await made.until(1)
    assert offered == [{}]


@pytest.mark.parametrize("size", [16_385, 2**24 - 1])
async def test_frame_that_is_too_long_is_refused_by_its_head(certificates, size):
    """None of it is collected first."""
    async with quick(certificates, limits=ServingLimits()) as house, client(house) as made:
        await made.ask(1, "/wait")  # so that it is not the idle connection that is closed
        await house.wait_for(lambda: house.events == ["began"])
        await made.peer.send(h2frame(SETTINGS, 0, 0, b"x", length=size))
        while made.terminated is None:
            assert await made.read()
        assert made.terminated == ErrorCodes.FRAME_SIZE_ERROR


async def test_heads_that_are_too_large(certificates):
    """Too many fields are 431; too many bytes are more than h2 unpacks, and end the connection."""
    fields = [(f"x-{index}", "y") for index in range(200)]
    large = [(f"x-{index}", "y" * 10_000) for index in range(3)]
    async with quick(certificates, limits=ServingLimits(head_bytes=20_000)) as house, client(house) as made:
        made.connection.send_headers(1, [*request(), *fields], end_stream=True)
        await made.flush()
        await made.until(1)
        assert made.status == {1: 431}
        assert made.connection.remote_settings.max_header_list_size == 20_000
        made.connection.send_headers(3, [*request(), *large], end_stream=True)
        await made.flush()
        while made.terminated is None:
            assert await made.read()
        assert made.terminated == ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("data", [b"", http2_peer.PREFACE[:10], SETUP, SETUP + headers(*REQUEST, flags=1)])
async def test_slow_head(certificates, data, autojump_clock):
    """Nothing, half a preface, no request, half of one: closed when the time for a head has passed."""
    async with (
        quick(certificates, limits=ServingLimits(head_seconds=5)) as house,
        house.connect("h2") as peer,
    ):
        began = trio.current_time()
        await peer.send_anyway(data)
        await peer.rest()
        assert trio.current_time() - began == pytest.approx(5, abs=0.5)


@pytest.mark.parametrize("announced", [True, False])
async def test_bodies_have_their_paths_bounds(certificates, announced):
    """Those of one path, and the usual ones of another."""
    options = {"limits": ServingLimits(body_bytes=1_000), "bodies": {"/length": BodyLimit(5_000, 30.0)}}
    async with quick(certificates, **options) as house, client(house) as made:
        for stream, path, size in ((1, "/length", 5_000), (3, "/length?x", 5_001), (5, "/other", 1_001)):
            length = [("content-length", str(size))] if announced else []
            made.connection.send_headers(stream, [*request(path, "POST"), *length])
            made.connection.send_data(stream, b"x" * size, end_stream=True)
            await made.flush()
        await made.until(1, 3, 5)
        assert made.status == {1: 200, 3: 413, 5: 413}


async def test_bodies_on_the_way_share_a_bound(certificates):
    """Four whole ones may be on the way at a time, in however many pieces of however many requests."""
    async with quick(certificates, limits=ServingLimits(body_bytes=1_000)) as house, client(house) as made:
        streams = range(1, 13, 2)
        for stream in streams:
            await made.ask(stream, "/length", "POST", end=False)
        for stream in streams:
            made.connection.send_data(stream, b"x" * 900)
        await made.flush()
        await made.until(*streams[4:])
        assert made.status == dict.fromkeys(streams[4:], 413)
        for stream in streams[:4]:
            made.connection.end_stream(stream)
        await made.flush()
        await made.until(*streams)
        assert {made.status[stream] for stream in streams[:4]} == {200}


@pytest.mark.parametrize("path", ["/wait", "/stream", "/endless"])
async def test_reset_of_a_stream_reaches_its_handler(certificates, path):
    """That one alone; the connection goes on."""
    async with quick(certificates) as house, client(house) as made:
        await made.ask(1, path)
        await house.wait_for(lambda: house.events == ["began"])
        made.connection.reset_stream(1)
        await made.flush()
        await house.wait_for(lambda: house.events == ["began", "ended"])
        await made.ask(3)
        await made.until(3)
        assert made.status[3] == 200


@pytest.mark.parametrize("leaves", ["its stream", "its connection"])
async def test_handler_that_sends_on_regardless_freezes_nobody(certificates, leaves):
    """A send to a stream that is gone raises, and lets others run."""
    swallowed = 0

    async def http(_scope, _receive, send):
        nonlocal swallowed
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while swallowed < 100_000:
            try:
                await send({"type": "http.response.body", "body": b"x" * 1_000, "more_body": True})
            except OSError:
                swallowed += 1
        raise AssertionError("nobody else has run meanwhile")

    async with quick(certificates, http=http) as house, house.websocket() as neighbour:
        async with client(house) as made:
            await made.ask(1)
            while 1 not in made.bodies:
                await made.read()
            if leaves == "its stream":
                made.connection.reset_stream(1)
                await made.flush()
                await house.wait_for(lambda: swallowed > 100)
        await house.wait_for(lambda: swallowed > 100)
        assert await neighbour.echo(b"still served") == b"still served"
