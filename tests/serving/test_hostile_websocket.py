"""What a peer can do to an open WebSocket: the right close code, and nobody else notices."""

import zlib

import pytest
import trio

from nurseries.serving import ServingLimits
from tests.serving.house import echo, serving
from tests.serving.peer import BINARY, CLOSE, PING, PONG, TEXT, UPGRADE, frame

CONT = 0
QUICK = ServingLimits(close_seconds=0.5)


def bomb() -> bytes:
    """Return a compressed message of 64 MB."""
    compressor = zlib.compressobj(9, wbits=-12)
    return (compressor.compress(bytes(64 << 20)) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


HOSTILE = {
    "not_utf8": (frame(b"\xff\xfe"), 1007),
    "surrogate": (frame(b"\xed\xa0\x80"), 1007),
    "overlong": (frame(b"\xc0\xaf"), 1007),
    "cut_utf8": (frame("é".encode()[:1]), 1007),
    "not_utf8_in_fragments": (frame(b"\xc3", fin=False) + frame(b"\x28", CONT), 1007),
    "not_utf8_reason": (frame(b"\x03\xe8\xff\xfe", CLOSE), 1007),
    "not_masked": (frame(b"hello", mask=None), 1002),
    "rsv1": (frame(b"hello", rsv=4), 1002),
    "rsv2": (frame(b"hello", rsv=2), 1002),
    "rsv3": (frame(b"hello", rsv=1), 1002),
    **{f"opcode_{opcode}": (frame(b"hello", opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "continuation_of_nothing": (frame(b"hello", CONT), 1002),
    "text_in_fragments": (frame(b"a", fin=False) + frame(b"b"), 1002),
    "binary_in_fragments": (frame(b"a", fin=False) + frame(b"b", BINARY), 1002),
    "ping_fragmented": (frame(b"a", PING, fin=False), 1002),
    "ping_long": (frame(b"a" * 126, PING), 1002),
    "pong_long": (frame(b"a" * 126, PONG), 1002),
    "close_long": (frame(b"\x03\xe8" + b"a" * 124, CLOSE), 1002),
    "close_of_one_byte": (frame(b"\x03", CLOSE), 1002),
    "close_code_reserved": (frame(b"\x03\xed", CLOSE), 1002),
    "close_code_unknown": (frame(b"\x00\x00", CLOSE), 1002),
    "close_code_5000": (frame(b"\x13\x88", CLOSE), 1002),
    "close_in_fragments": (frame(b"a", fin=False) + frame(b"\x03\xe8", CLOSE), 1002),
    "close_normal": (frame(b"\x03\xe8bye", CLOSE), 1000),
    "close_empty": (frame(b"", CLOSE), 1005),
    "close_then_more": (frame(b"\x03\xe8", CLOSE) + frame(b"x") * 100, 1000),
    "too_big": (frame(b"x" * 131_073), 1009),
    "claims_too_big": (frame(b"x", length=131_073), 1009),
    "claims_exabytes": (frame(b"x", length=2**63 - 1), 1009),
    "claims_negative": (frame(b"x", length=2**64 - 1), 1009),
    "too_big_in_fragments": (frame(b"x" * 65_536, fin=False) + frame(b"x" * 65_537, CONT), 1009),
    "http_request": (b"GET / HTTP/1.1\r\nHost: test\r\n\r\n", 1002),
    "crash": (frame(b"crash"), 1011),
    "exit": (frame(b"exit"), 1011),
    "return": (frame(b"return"), 1000),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_frames(name):
    """Every input ends the socket with its code, and the bystander goes on."""
    data, code = HOSTILE[name]
    crashes = 1 if name in {"crash", "exit"} else 0
    async with serving(QUICK, crashes=crashes) as house:
        async with house.websocket() as peer:
            with trio.fail_after(30):
                await peer.send_anyway(data)
                assert await peer.close_code() == code
        await house.wait_alone()


@pytest.mark.parametrize("name", ["not_utf8_in_fragments", "rsv1", "claims_exabytes", "close_of_one_byte"])
async def test_hostile_frames_byte_by_byte(name):
    """Whatever byte the network cuts at, the code is the same."""
    data, code = HOSTILE[name]
    async with serving(QUICK) as house, house.websocket() as peer:
        for index in range(len(data)):
            await peer.send_anyway(data[index : index + 1])
        assert await peer.close_code() == code


@pytest.mark.parametrize("data", [frame(b"\xff"), frame(b"x", rsv=7), b"\x00" * 3_000, b"\xff" * 3_000])
async def test_frames_before_the_answer(data):
    """Frames sent before the upgrade is accepted are read after it, and judged like any others."""
    async with serving(QUICK) as house, house.connect() as peer:
        await peer.send(UPGRADE + b"\r\n" + data)
        assert (await peer.head()).startswith(b"HTTP/1.1 101")
        assert await peer.close_code() in {1002, 1007}


async def test_messages_before_the_answer():
    """A client need not wait for the answer to its handshake."""
    async with serving() as house, house.connect() as peer:
        await peer.send(UPGRADE + b"\r\n" + frame(b"early"))
        assert (await peer.head()).startswith(b"HTTP/1.1 101")
        assert await peer.frame() == (TEXT, b"early")


async def test_deflate_is_not_offered_unless_asked_for():
    """A compressed frame without the extension is a protocol error."""
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    async with serving(QUICK) as house, house.websocket(offer) as peer:
        await peer.send(frame(b"\xaa\x00", rsv=4))
        assert await peer.close_code() == 1002


async def test_compression_bomb():
    """What inflates beyond the limit closes with 1009."""
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    limits = ServingLimits(deflate=True, close_seconds=0.5)
    async with serving(limits) as house, house.websocket(offer) as peer:
        await peer.send(frame(bomb(), rsv=4))
        assert await peer.close_code() == 1009


async def test_deflated_messages():
    """With the extension on, a compressed message is read and answered compressed."""
    offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    compressor = zlib.compressobj(wbits=-12)
    data = (compressor.compress(b"hello " * 20) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    async with serving(ServingLimits(deflate=True)) as house, house.websocket(offer) as peer:
        await peer.send(frame(data, rsv=4))
        first = await peer.take(1)
        assert first == b"\xc1"
        payload = await peer.take((await peer.take(1))[0])
        assert zlib.decompressobj(wbits=-12).decompress(payload + b"\x00\x00\xff\xff") == b"hello " * 20


async def test_empty_messages_keep_their_kind():
    """An empty binary message is an empty binary message, an empty text an empty text."""
    async with serving() as house, house.websocket() as peer:
        await peer.send(frame(b"", BINARY) + frame(b""))
        assert await peer.frame() == (BINARY, b"")
        assert await peer.frame() == (TEXT, b"")


async def test_fragments_with_a_ping_between():
    """Control frames may come between fragments; the message is joined over a cut character."""
    text = "é".encode()
    async with serving() as house, house.websocket() as peer:
        await peer.send(frame(text[:1], fin=False) + frame(b"p", PING) + frame(b"", CONT, fin=False))
        assert await peer.frame() == (PONG, b"p")
        await peer.send(frame(text[1:], CONT))
        assert await peer.frame() == (TEXT, text)


async def test_biggest_message():
    """A message of exactly the limit is taken."""
    async with serving() as house, house.websocket() as peer:
        await peer.send(frame(b"x" * 131_072))
        assert await peer.frame() == (TEXT, b"x" * 131_072)


async def test_silent_peer_is_pinged_then_closed(autojump_clock):
    """Two heartbeats of silence close with 4408; one that answers pings stays for ever."""
    async with serving() as house, house.websocket() as peer:
        assert await peer.frame() == (PING, b"")
        await peer.send(frame(b"", PONG))
        assert await peer.frame() == (PING, b"")
        began = trio.current_time()
        assert await peer.close_code() == 4408
        assert trio.current_time() - began <= 20 + 3 + 1
        await house.wait_alone()


async def test_flood_is_slowed_then_closed(autojump_clock):
    """120 messages pass at once, then 10 a second; who goes on for 10 s is closed with 1008."""
    async with serving() as house, house.websocket() as peer:
        await peer.send(frame(b"x") * 300)
        began = trio.current_time()
        answered = 0
        while (await peer.frame())[0] == TEXT:
            answered += 1
        assert answered == 120 + 10 * 10 - 1
        assert trio.current_time() - began == pytest.approx(10, abs=1)


async def test_burst_is_only_slowed(autojump_clock):
    """A burst that is over within 10 s is answered in full."""
    async with serving() as house, house.websocket() as peer:
        await peer.send(frame(b"x") * 200)
        for _ in range(200):
            assert await peer.frame() == (TEXT, b"x")
        assert await peer.echo(b"still here") == b"still here"


@pytest.mark.parametrize("flood", [frame(b"", PING), frame(b"", PONG), frame(b"", CONT, fin=False)])
async def test_flood_of_small_frames(flood, autojump_clock):
    """Pings, pongs and empty fragments count as much as messages."""
    async with serving() as house, house.websocket() as peer:
        await peer.send(frame(b"", fin=False) + flood * 1_000)
        assert await peer.close_code() == 1008
        await house.wait_alone()


async def test_reset_in_the_middle_of_a_send():
    """A peer that resets while it is sent to ends its handler."""
    async with serving() as house:
        async with house.websocket() as peer:
            await peer.send(frame(b"flood me"))
            await peer.frame()
            await peer.reset()
        await house.wait_alone()


async def test_peer_that_never_reads_is_dropped():
    """Who takes nothing for the write deadline is dropped."""
    limits = ServingLimits(write_seconds=0.2, close_seconds=0.2)
    async with serving(limits) as house, house.websocket() as peer:
        await peer.send(frame(b"flood me"))
        await house.wait_alone()


async def test_reset_while_it_is_read():
    """A peer that resets an idle socket ends its handler."""
    async with serving() as house:
        async with house.websocket() as peer:
            assert await peer.echo(b"hello") == b"hello"
            await peer.reset()
        await house.wait_alone()


async def test_hanging_handshake():
    """A handler that never answers is ended with 503."""

    async def never(handshake):
        if b"patience" in handshake.query.encode():
            await trio.sleep_forever()
        await echo(handshake)

    async with (
        serving(ServingLimits(handshake_seconds=0.1), websocket=never) as house,
        house.connect() as peer,
    ):
        await peer.send(UPGRADE.replace(b"/ws", b"/ws?patience") + b"\r\n")
        assert await peer.status() == 503
        await house.wait_alone()


async def test_crash_before_the_answer():
    """A handler that fails before it answers gives 500."""

    async def fails(handshake):
        if handshake.query:
            raise RuntimeError("no")
        await echo(handshake)

    async with serving(websocket=fails, crashes=1) as house, house.connect() as peer:
        await peer.send(UPGRADE.replace(b"/ws", b"/ws?fail") + b"\r\n")
        assert await peer.status() == 500
