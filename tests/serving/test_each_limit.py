"""Each field of `ServingLimits`, set to something unusual, is met exactly there: none is without effect.

Times are the clock's, which jumps wherever nobody has anything to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import h2.errors
import pytest
import trio
import trio.testing

from nurseries.serving import ServingLimits
from tests.serving import http2_peer
from tests.serving.house import echo, serving
from tests.serving.http2_peer import h2frame, headers, request
from tests.serving.peer import CLOSE, GET, PING, TEXT, UPGRADE, frame
from tests.serving.test_hostile_http1 import POST

NAMES = [field.name for field in attrs.fields(ServingLimits)]
WAIT = GET.replace(b"/ ", b"/wait ") + b"\r\n"


@contextmanager
def takes(seconds: float) -> Iterator[None]:
    """Check how long the block takes, on a clock that stands still while there is work to do."""
    began = trio.current_time()
    yield
    assert trio.current_time() - began == pytest.approx(seconds, abs=0.1)


async def meets_connections():
    async with serving(ServingLimits(connections=3)) as house, house.connect(), house.connect() as last:
        await last.send(GET + b"\r\n")
        assert await last.status() == 200
        async with house.connect() as peer:
            assert await peer.status() == 503


async def meets_connections_per_address():
    limits = ServingLimits(connections_per_address=3)
    async with serving(limits) as house, house.connect(), house.connect() as last:
        await last.send(GET + b"\r\n")
        assert await last.status() == 200
        async with house.connect() as peer:
            assert await peer.status() == 429


async def meets_tls_seconds(certificates):
    async with serving(
        ServingLimits(tls_seconds=3), certificates=certificates.files, client_tls=certificates.client
    ) as house:
        stream = await trio.open_tcp_stream("127.0.0.1", house.port)
        with takes(3):
            assert await stream.receive_some() == b""
        await stream.aclose()


async def meets_head_seconds():
    async with serving(ServingLimits(head_seconds=3)) as house:
        async with house.connect() as peer:
            with takes(3):
                assert await peer.status() == 0
        async with house.connect() as peer:
            await peer.send(GET)
            with takes(3):
                assert await peer.status() == 408


async def meets_head_bytes():
    async with serving(ServingLimits(head_bytes=2_000)) as house:
        for size, status in ((1_900, 200), (2_100, 431)):
            async with house.connect() as peer:
                await peer.send(GET + b"X: " + b"y" * (size - len(GET)) + b"\r\n\r\n")
                assert await peer.status() == status


async def meets_head_fields():
    async with serving(ServingLimits(head_fields=10)) as house:
        for count, status in ((9, 200), (10, 431)):  # and Host
            async with house.connect() as peer:
                await peer.send(GET + b"X: y\r\n" * count + b"\r\n")
                assert await peer.status() == status


async def meets_body_seconds():
    async with serving(ServingLimits(body_seconds=4)) as house, house.connect() as peer:
        await peer.send(POST + b"Content-Length: 5\r\n\r\nhell")
        with takes(4):
            assert await peer.status() == 408


async def meets_body_bytes():
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    async with serving(ServingLimits(body_bytes=10)) as house:
        for size, status in ((10, 200), (11, 413)):
            body = b"x" * size
            for data in (POST + b"Content-Length: %d\r\n\r\n%s" % (size, body), chunked % (size, body)):
                async with house.connect() as peer:
                    await peer.send(data)
                    assert await peer.status() == status


async def meets_keep_alive_seconds():
    async with serving(ServingLimits(keep_alive_seconds=4)) as house, house.connect() as peer:
        await peer.send(GET + b"\r\n")
        assert await peer.status() == 200
        with takes(4):
            assert await peer.rest() == b""


async def meets_pipelined_bytes():
    async with serving(ServingLimits(pipelined_bytes=1_000, close_seconds=1)) as house:
        async with house.connect() as peer:
            await peer.send(WAIT + b"x" * 900)
            await house.wait_for(lambda: house.events)
            await trio.testing.wait_all_tasks_blocked()
            assert house.events == ["began"]
            await peer.send(b"x" * 200)
            await house.wait_for(lambda: house.events == ["began", "ended"])


async def meets_write_seconds():
    limits = ServingLimits(write_seconds=3, close_seconds=1)
    async with serving(limits) as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", b"/endless ") + b"\r\n")
        with takes(3):
            await house.wait_for(lambda: house.events == ["began", "ended"])


async def meets_requests_per_second():
    async with serving(ServingLimits(requests_per_second=0.5, request_burst=2)) as house:
        async with house.connect() as peer:  # the bystander was the first
            for pause, status in ((0, 200), (0, 429), (1.9, 429), (0.2, 200), (0, 429)):
                await trio.sleep(pause)
                await peer.send(GET + b"\r\n")
                assert await peer.status() == status


async def meets_request_burst():
    async with serving(ServingLimits(requests_per_second=0.1, request_burst=4)) as house:
        async with house.connect() as peer:  # the bystander was the first
            await peer.send((GET + b"\r\n") * 4)
            assert [await peer.status() for _ in range(4)] == [200, 200, 200, 429]


async def meets_rate_addresses():
    limits = ServingLimits(requests_per_second=0.001, request_burst=1, rate_addresses=3)
    async with serving(limits, trusted_proxies=["127.0.0.1"]) as house, house.connect() as peer:

        async def status(client: int) -> int:
            await peer.send(GET + b"X-Forwarded-For: 192.0.2.%d\r\n\r\n" % client)
            return await peer.status()

        assert [await status(client) for client in (1, 2, 3, 2, 3, 4)] == [200, 200, 200, 429, 429, 200]
        assert house.statistics.rate_addresses == 3
        assert await status(1) == 200, "forgotten, since three others came after it"


async def meets_http2_streams(certificates):
    limits = ServingLimits(http2_streams=2)
    async with http2_peer.quick(certificates, limits=limits) as house:
        async with http2_peer.client(house) as made:
            for stream in (1, 3):
                await made.peer.send(headers(*request("/wait"), stream=stream))
            await house.wait_for(lambda: house.events == ["began"] * 2)
            await made.peer.send(headers(*request("/wait"), stream=5))
            while await made.read():
                pass
            assert made.terminated == h2.errors.ErrorCodes.PROTOCOL_ERROR
            assert made.connection.remote_settings.max_concurrent_streams == 2


async def meets_http2_control_frames(certificates):
    limits = ServingLimits(http2_control_frames=30)
    async with http2_peer.quick(certificates, limits=limits) as house:
        async with http2_peer.client(house) as made:
            await made.peer.send(h2frame(http2_peer.PING, 0, 0, b"12345678") * 20)
            await made.ask(1)
            await made.until(1)
            assert made.terminated is None
            await made.peer.send(h2frame(http2_peer.PING, 0, 0, b"12345678") * 20)
            while await made.read():
                pass
            assert made.terminated == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


async def meets_handshake_seconds():
    async def never(handshake):
        if handshake.query:
            await trio.sleep_forever()
        await echo(handshake)

    limits = ServingLimits(handshake_seconds=4)
    async with serving(limits, websocket=never) as house, house.connect() as peer:
        await peer.send(UPGRADE.replace(b"/ws", b"/ws?never") + b"\r\n")
        with takes(4):
            assert await peer.status() == 503


async def meets_message_bytes():
    limits = ServingLimits(message_bytes=100)
    async with serving(limits) as house, house.websocket() as peer:
        await peer.send(frame(b"x" * 100) + frame(b"y" * 50, fin=False) + frame(b"y" * 50, 0))
        assert [await peer.frame() for _ in range(2)] == [(TEXT, b"x" * 100), (TEXT, b"y" * 100)]
        await peer.send(frame(b"y" * 50, fin=False) + frame(b"y" * 51, 0))
        assert await peer.close_code() == 1009


async def meets_frames_per_minute():
    limits = ServingLimits(frames_per_minute=30, frame_burst=1)
    async with serving(limits) as house, house.websocket() as peer:
        await peer.send(frame(b"x") * 4)
        with takes(3 * 2):
            assert [await peer.frame() for _ in range(4)] == [(TEXT, b"x")] * 4


async def meets_frame_burst():
    limits = ServingLimits(frames_per_minute=30, frame_burst=4)
    async with serving(limits) as house, house.websocket() as peer:
        await peer.send(frame(b"x") * 5)
        with takes(0):
            assert [await peer.frame() for _ in range(4)] == [(TEXT, b"x")] * 4
        with takes(2):
            assert await peer.frame() == (TEXT, b"x")


async def meets_flood_seconds():
    async with serving(ServingLimits(flood_seconds=3)) as house, house.websocket() as peer:
        await peer.send(frame(b"x") * 1_000)
        with takes(3):
            assert await peer.close_code() == 1008


async def meets_heartbeat_seconds():
    async with serving(ServingLimits(heartbeat_seconds=7)) as house, house.websocket() as peer:
        with takes(7):
            assert await peer.frame() == (PING, b"")
        with takes(7):
            assert await peer.close_code() == 4408


async def meets_close_seconds():
    async with serving(ServingLimits(close_seconds=5)) as house, house.websocket() as peer:
        await peer.send(frame(b"return"))
        assert await peer.frame() == (CLOSE, b"\x03\xe8")
        with takes(5):  # nobody answers the farewell
            await house.wait_alone()


async def meets_deflate():
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    for on in (False, True):
        async with serving(ServingLimits(deflate=on)) as house, house.connect() as peer:
            await peer.send(UPGRADE + offer + b"\r\n")
            assert (b"permessage-deflate" in await peer.head()) is on


@pytest.mark.parametrize("name", NAMES)
async def test_limit_is_met(name, certificates, autojump_clock):
    """Below it all is well, above it the peer is told, or the connection ended, as docs/serving.md says."""
    scenario = globals()[f"meets_{name}"]
    if scenario.__code__.co_argcount:
        await scenario(certificates)
    else:
        await scenario()
