"""TCP over IPv4 and IPv6, unix sockets, and TLS over both: what is promised holds on each of them."""

from contextlib import AsyncExitStack

import pytest
import trio

from nurseries.serving import ServingLimits
from tests.serving import test_hostile_http1, test_hostile_websocket
from tests.serving.house import serving, taking_one
from tests.serving.peer import GET, PING, TEXT, UPGRADE, frame
from tests.serving.test_vanished import ASK, comes_to_rest, endless

WAYS = ["close", "reset", "half-close"]
HURRIED = ServingLimits(write_seconds=0.2, close_seconds=0.2)


async def test_requests_and_messages(transport):
    """Both work, small and larger than every buffer."""
    async with serving(**transport) as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", b"/big?bytes=3000000 ") + b"\r\n" + UPGRADE + b"\r\n")
        status, _, body = await peer.response()
        assert (status, len(body)) == (200, 3_000_000)
        assert (await peer.head()).startswith(b"HTTP/1.1 101")
        assert await peer.echo(b"x" * 100_000) == b"x" * 100_000


@pytest.mark.parametrize("name", ["garbage", "length_and_chunked", "headers_too_large", "chunks_over_limit"])
async def test_hostile_requests(name, transport):
    """The answer is the same, and it arrives."""
    data, expected = test_hostile_http1.HOSTILE[name]
    async with serving(HURRIED, **transport) as house, house.connect() as peer:
        await peer.send_anyway(data)
        assert await peer.status() == expected


@pytest.mark.parametrize("name", ["not_utf8", "rsv1", "too_big", "claims_exabytes", "crash", "close_normal"])
async def test_hostile_frames(name, transport):
    """The close code is the same, and it arrives."""
    data, code = test_hostile_websocket.HOSTILE[name]
    async with serving(HURRIED, crashes=name == "crash", **transport) as house, house.websocket() as peer:
        await peer.send_anyway(data)
        assert await peer.close_code() == code


@pytest.mark.parametrize("path", [b"/wait", b"/stream", b"/endless"])
@pytest.mark.parametrize("how", WAYS)
async def test_disconnect_reaches_the_handler(path, how, transport):
    """At once, and behind bytes of a next request."""
    async with serving(**transport) as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", path + b" ") + b"\r\n" + GET)
        await house.wait_for(lambda: house.events)
        await peer.leave(how)
        await house.wait_for(lambda: house.events == ["began", "ended"])
        await house.wait_alone()


@pytest.mark.parametrize("how", WAYS)
async def test_disconnect_is_seen_by_who_takes_no_message(how, transport):
    """Behind messages that nobody has received."""
    ended = trio.Event()
    async with serving(websocket=taking_one(ended), **transport) as house, house.connect() as peer:
        await peer.send(UPGRADE.replace(b"/ws", b"/full") + b"\r\n" + frame(b"x" * 1_000) * 50)
        await peer.head()
        await peer.leave(how)
        await ended.wait()
        await house.wait_alone()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("what", ASK)
async def test_send_loop_to_a_vanished_peer_comes_to_rest(what, how, transport):
    """No loop goes on for a peer that has gone."""
    async with serving(HURRIED, http=endless, **transport) as house, house.connect() as peer:
        await peer.send(ASK[what])
        await peer.take(300_000)
        await peer.leave(how)
        await house.wait_alone()
        await comes_to_rest()


@pytest.mark.parametrize("what", ASK)
async def test_peer_that_never_reads_is_dropped(what, transport):
    """At the write deadline."""
    async with serving(HURRIED, http=endless, **transport) as house, house.connect() as peer:
        await peer.send(ASK[what])
        await house.wait_for(lambda: house.statistics.connections == 2)
        await house.wait_alone()


@pytest.mark.parametrize(
    ("data", "status", "seconds"),
    [(b"", 0, 10), (GET, 408, 10), (test_hostile_http1.POST + b"Content-Length: 9\r\n\r\nhalf", 408, 30)],
)
async def test_slow_request(data, status, seconds, transport, autojump_clock):
    """Silence, a slow head and a slow body meet their deadlines."""
    async with serving(**transport) as house, house.connect() as peer:
        began = trio.current_time()
        if data:
            await peer.send(data)
        assert await peer.status() == status
        assert trio.current_time() - began == pytest.approx(seconds, abs=1)
        await house.wait_alone()


async def test_silent_peer_is_pinged_then_closed(transport, autojump_clock):
    """Two heartbeats of silence."""
    async with serving(**transport) as house, house.websocket() as peer:
        assert await peer.frame() == (PING, b"")
        assert await peer.close_code() == 4408


async def test_flood_is_slowed_then_closed(transport, autojump_clock):
    """As many messages are answered as the rate allows, then 1008."""
    async with serving(**transport) as house, house.websocket() as peer:
        await peer.send(frame(b"x") * 300)
        answered = 0
        while (await peer.frame())[0] == TEXT:
            answered += 1
        assert answered == 120 + 10 * 10 - 1


async def test_drain_and_end(transport):
    """Idle connections go, sockets stay until the end, and then hear 1012."""
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(serving(HURRIED, **transport))
        chat = await stack.enter_async_context(house.websocket())
        idle = await stack.enter_async_context(house.connect())
        await idle.send(GET + b"\r\n")
        assert await idle.status() == 200
        house.listener.drain()
        assert await idle.rest() == b""
        assert await chat.echo(b"still here") == b"still here"
        house.server_scope.cancel()
        assert await chat.close_code() == 1012


async def test_one_connection_too_many(transport):
    """It is told so, or in TLS closed."""
    async with serving(ServingLimits(connections=2), **transport) as house, house.connect():
        if "certificates" in transport:
            with pytest.raises(trio.BrokenResourceError):
                async with house.connect():
                    pass
        else:
            async with house.connect() as peer:
                assert await peer.status() == 503
        assert house.statistics.refused == 1
