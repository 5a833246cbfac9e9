"""Ten thousand mutated inputs: handshakes, requests, frames, HTTP/2. The seed is in the test's name."""

import random

import pytest
import trio

from nurseries.serving import ServingLimits
from tests.serving import http2_peer, test_hostile_http1, test_hostile_http2, test_hostile_websocket
from tests.serving.house import serving
from tests.serving.peer import GET, UPGRADE, Peer, frame

SEED = 20_260_101
AT_ONCE = 50
LIMITS = ServingLimits(
    requests_per_second=1e9,
    request_burst=10**9,
    frames_per_minute=1e9,
    frame_burst=10**9,
    head_seconds=3,
    body_seconds=0.3,
    keep_alive_seconds=0.3,
    close_seconds=0.1,
    http2_control_frames=100,
)
PIECES = [
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b"\xff" * 9,
    b": ",
    b" ",
    b"HTTP/1.1",
    b"chunked",
    b"-1",
    b"%00",
    b"9" * 30,
]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Return `data` with a few things wrong in it."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(result) + 1)
        match rng.randrange(6):
            case 0 if at < len(result):
                result[at] ^= 1 << rng.randrange(8)
            case 1:
                result[at:at] = rng.choice(PIECES)
            case 2:
                del result[at : at + rng.randrange(1, 9)]
            case 3:
                result[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                result[at:at] = result[at : at + rng.randrange(1, 60)]
            case _ if at < len(result):
                result[at] = rng.randrange(256)
    return bytes(result)


def small(data: bytes) -> bool:
    """Tell whether an input is small enough to be mutated thousands of times."""
    return len(data) < 3_000


REQUESTS = [data for data, _ in test_hostile_http1.HOSTILE.values() if small(data)] + [
    GET + b"\r\n",
    GET + b"Connection: close\r\n\r\n",
    test_hostile_http1.POST + b"Content-Length: 5\r\n\r\nhello",
    test_hostile_http1.POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    *[UPGRADE + b"Sec-WebSocket-Protocol: house\r\nOrigin: http://test\r\n\r\n" + frame(b"hello")] * 10,
]
FRAMES = [
    data
    for name, (data, _) in test_hostile_websocket.HOSTILE.items()
    if small(data) and name not in {"crash", "exit"}
] + [frame(b"hello"), frame(b"a", fin=False) + frame(b"b", 0), frame(b"x" * 300, 2), frame(b"", 9)] * 5
HTTP2 = [data for data in test_hostile_http2.HOSTILE.values() if small(data)] + [
    http2_peer.SETUP + http2_peer.headers(*http2_peer.request(path)) for path in ("/", "/nope", "/wait")
]


async def speak(peer: Peer, data: bytes, rng: random.Random) -> None:
    """Say it, read a little, and leave in one of the ways to leave."""
    with trio.move_on_after(0.3):
        await peer.send_anyway(data)
        how = rng.randrange(4)
        if how == 0:
            await peer.more()
        elif how == 1:
            await peer.reset()
        elif how == 2:
            await trio.lowlevel.checkpoint()


async def run(count: int, seed: int, one) -> None:
    """Run `one(rng)` so many times, some at a time."""
    async with trio.open_nursery() as nursery:
        for worker in range(AT_ONCE):

            async def work(rng: random.Random) -> None:
                for _ in range(count // AT_ONCE):
                    await one(rng)

            nursery.start_soon(work, random.Random(seed + worker))


@pytest.mark.parametrize("seed", [SEED])
async def test_fuzz_requests(seed, caplog):
    """5,000 mutated requests and handshakes crash nothing."""
    async with serving(LIMITS) as house:

        async def one(rng: random.Random) -> None:
            data = mutate(rng, rng.choice(REQUESTS))
            async with house.connect() as peer:
                await speak(peer, data, rng)

        await run(5_000, seed, one)
        await house.wait_alone()
    assert not caplog.records


@pytest.mark.parametrize("seed", [SEED])
async def test_fuzz_frames(seed, caplog):
    """4,000 mutated frames crash nothing."""
    async with serving(LIMITS) as house:

        async def one(rng: random.Random) -> None:
            data = b"".join(mutate(rng, rng.choice(FRAMES)) for _ in range(rng.randrange(1, 4)))
            async with house.websocket() as peer:
                await speak(peer, data, rng)

        await run(4_000, seed, one)
        await house.wait_alone()
    assert not caplog.records


def http2_input(rng: random.Random) -> bytes:
    """Return a mutated HTTP/2 connection; most begin as one."""
    data = rng.choice(HTTP2)
    kept = len(http2_peer.PREFACE) if rng.random() < 0.9 else 0
    return data[:kept] + mutate(rng, data[kept:])


@pytest.mark.parametrize("seed", [SEED])
async def test_fuzz_http2(seed, certificates, caplog):
    """1,000 mutated HTTP/2 connections crash nothing; they come in TLS, like every HTTP/2 connection."""
    async with serving(LIMITS, certificates=certificates.files, client_tls=certificates.client) as house:

        async def one(rng: random.Random) -> None:
            async with house.connect("h2") as peer:
                assert peer.stream.selected_alpn_protocol() == "h2"
                await speak(peer, http2_input(rng), rng)

        await run(1_000, seed, one)
        await house.wait_alone()
    assert not caplog.records
