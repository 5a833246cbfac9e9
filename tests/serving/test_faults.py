"""What a bad network does to a connection, and that it does nothing to the others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from nurseries.serving import ServingLimits
from tests.serving.faults import Faults, Network, faulty
from tests.serving.house import serving
from tests.serving.peer import GET, PING, PONG, UPGRADE, Peer, frame


@asynccontextmanager
async def through(network: Network) -> AsyncIterator[Peer]:
    """Open a WebSocket through a network."""
    stream = await trio.open_tcp_stream("127.0.0.1", network.port)
    try:
        peer = Peer(stream)
        await peer.send(UPGRADE + b"\r\n")
        assert (await peer.head()).startswith(b"HTTP/1.1 101")
        yield peer
    finally:
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(latency=0.01),
        Faults(slice_bytes=1),
        Faults(slice_bytes=7, latency=0.001),
        Faults(bytes_per_second=1e6),
    ],
)
async def test_slow_and_sliced(faults):
    """Late, narrow and cut to pieces, everything still arrives as it was sent."""
    async with serving() as house, faulty(house.port, faults) as network, through(network) as peer:
        assert await peer.echo("é".encode() * 200) == "é".encode() * 200
        stream = await trio.open_tcp_stream("127.0.0.1", network.port)
        browser = Peer(stream)
        await browser.send((GET + b"\r\n") * 2)
        assert [await browser.status() for _ in range(2)] == [200, 200]
        await stream.aclose()


async def test_black_hole_is_noticed_within_two_heartbeats(autojump_clock):
    """A peer behind a cable that was pulled is closed, though TCP knows nothing of it."""
    async with serving() as house, faulty(house.port, Faults()) as network, through(network) as peer:
        assert await peer.echo(b"hello") == b"hello"
        network.faults = Faults(black_hole=True)
        began = trio.current_time()
        await house.wait_alone()
        assert trio.current_time() - began < 2 * 20 + 5


async def test_late_answers_keep_the_heartbeat(autojump_clock):
    """A peer that is seconds away, and answers every ping, stays."""
    async with (
        serving() as house,
        faulty(house.port, Faults(latency=5)) as network,
        through(network) as peer,
    ):
        for _ in range(3):
            assert (await peer.frame())[0] == PING
            await peer.send(frame(b"", PONG))
        assert house.statistics.websockets == 2


async def test_reset_by_the_network():
    """A network that resets everything ends what went through it, and nothing else."""
    async with serving() as house, faulty(house.port, Faults()) as network, through(network) as peer:
        await peer.send(frame(b"flood me"))
        await peer.frame()
        network.reset_all()
        await house.wait_alone()


async def test_many_chat_while_one_never_reads():
    """A hundred go on chatting, message after message, beside a peer that asks for all and reads nothing."""
    limits = ServingLimits(frames_per_minute=1e6, frame_burst=10**6)
    async with serving(limits) as house, house.websocket() as deaf:
        await deaf.send(frame(b"flood me"))

        async def chat() -> None:
            async with house.websocket() as peer:
                for index in range(20):
                    assert await peer.echo(b"%d" % index) == b"%d" % index

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(chat)


async def test_many_connect_and_drop():
    """Connections that come and go, in every way, leave nothing behind."""
    async with serving(ServingLimits(requests_per_second=1e6, request_burst=10**6)) as house:
        before = len(trio.lowlevel.current_root_task().child_nurseries[0].child_tasks)

        async def come_and_go(index: int) -> None:
            for _ in range(25):
                async with house.connect() as peer:
                    if index % 4:
                        await peer.send(UPGRADE + b"\r\n" if index % 2 else GET)
                    if index % 3 == 0:
                        await peer.reset()

        async with trio.open_nursery() as nursery:
            for index in range(40):
                nursery.start_soon(come_and_go, index)
        await house.wait_alone()
        assert len(house.listener._open) == 1
        assert not house.listener._serving.connections
        assert len(trio.lowlevel.current_root_task().child_nurseries[0].child_tasks) == before
