"""HTTP/1.1 as it should be: keep-alive, pipelining, deadlines, disconnects, failures of a handler."""

import json
import logging

import pytest
import trio

from nurseries.serving import ServingLimits
from tests.serving.house import serving
from tests.serving.peer import GET, UPGRADE, frame


async def test_keep_alive_and_pipelining():
    """Requests on one connection are answered in their order, also when they come at once."""
    async with serving() as house, house.connect() as peer:
        await peer.send((GET + b"\r\n") * 2 + b"GET /nope HTTP/1.1\r\nHost: test\r\n\r\n" + GET + b"\r\n")
        assert [await peer.status() for _ in range(4)] == [200, 200, 404, 200]
        await peer.send(GET + b"\r\n")
        assert await peer.status() == 200


async def test_pipelined_body():
    """Bodies and requests that arrive in one piece are told apart."""
    post = b"POST /length HTTP/1.1\r\nHost: test\r\n"
    async with serving() as house, house.connect() as peer:
        await peer.send(
            post
            + b"Content-Length: 3\r\n\r\nabc"
            + post
            + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
            + GET
            + b"\r\n"
        )
        assert [(await peer.response())[2] for _ in range(3)] == [b"3", b"2", b"ok"]


async def test_upgrade_of_a_used_connection():
    """A connection that has served a request may still become a WebSocket."""
    async with serving() as house, house.connect() as peer:
        await peer.send(GET + b"\r\n" + UPGRADE + b"\r\n")
        assert await peer.status() == 200
        assert (await peer.head()).startswith(b"HTTP/1.1 101")
        assert await peer.echo(b"hello") == b"hello"


@pytest.mark.parametrize("path", [b"/crash", b"/exit"])
async def test_failing_handler(path, caplog):
    """A handler's failure is a 500 on its own request, and at most one line in the log of the server."""
    crashes = 1 if path == b"/exit" else 0  # Quart answers an Exception by itself
    async with serving(crashes=crashes) as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", path + b" ") + b"\r\n")
        assert await peer.status() == 500
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == crashes


async def test_failing_application_after_its_head():
    """An answer that cannot be completed is cut, and never looks complete."""

    async def http(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("no more")

    async with serving(http=http, crashes=1) as house, house.connect() as peer:
        await peer.send(GET + b"\r\n")
        assert (await peer.rest()).endswith(b"half")


@pytest.mark.parametrize("path", [b"/wait", b"/stream", b"/endless"])
@pytest.mark.parametrize("behind", [b"", GET + b"\r\n", GET])
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_disconnect_reaches_the_handler(path, behind, how):
    """A handler whose client leaves is ended at once, also when bytes of a next request wait."""
    async with serving() as house:
        async with house.connect() as peer:
            await peer.send(GET.replace(b"/ ", path + b" ") + b"\r\n" + behind)
            if path != b"/wait":
                await peer.head()
            await house.wait_for(lambda: house.events)
            if how == "reset":
                await peer.reset()
            elif how == "half-close":
                await peer.stream.send_eof()
                await house.wait_for(lambda: house.events == ["began", "ended"])
        await house.wait_for(lambda: house.events == ["began", "ended"])
        await house.wait_alone()


async def test_too_much_behind_a_running_request():
    """A peer that pipelines without end is cut off."""
    async with serving(ServingLimits(close_seconds=0.2)) as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", b"/wait ") + b"\r\n")
        for _ in range(40):
            await peer.send_anyway(b"x" * 65_536)
        await house.wait_for(lambda: house.events == ["began", "ended"])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 0),
        (b"GET / HT", 408),
        (GET, 408),
        (b"POST /length HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nhalf", 408),
        (b"POST /length HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", 408),
    ],
)
async def test_slow_request(data, status, autojump_clock):
    """A request that is not complete in time is answered 408; silence is just closed."""
    async with serving() as house, house.connect() as peer:
        await peer.send(data)
        assert await peer.status() == status
        await house.wait_alone()


async def test_drip(autojump_clock):
    """A byte now and then does not put a deadline off."""
    async with serving() as house, house.connect() as peer:
        began = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):  # whichever byte is the last
            while True:
                await peer.send(b"X")
                await trio.sleep(1)
        assert trio.current_time() - began < 20


async def test_idle_connection_is_closed(autojump_clock):
    """A kept connection is closed when nothing comes on it."""
    async with serving() as house, house.connect() as peer:
        await peer.send(GET + b"\r\n")
        assert await peer.status() == 200
        began = trio.current_time()
        assert await peer.rest() == b""
        assert trio.current_time() - began == pytest.approx(15, abs=1)


async def test_long_answer_has_no_deadline(autojump_clock):
    """A stream may go on for ever as long as it is read."""
    async with serving() as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", b"/stream ") + b"\r\n")
        until = trio.current_time() + 90
        while trio.current_time() < until:
            assert await peer.more()
            peer.buffer = b""


async def test_peer_that_never_reads_is_dropped():
    """An answer that nobody takes ends at the write deadline, and with it its handler."""
    limits = ServingLimits(write_seconds=0.2, close_seconds=0.2)
    async with serving(limits) as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", b"/endless ") + b"\r\n")
        await house.wait_for(lambda: house.events == ["began", "ended"])
        await house.wait_alone()


async def test_send_to_nobody_is_a_checkpoint_and_raises():
    """An application that goes on sending after a disconnect gets an OSError, and freezes nobody."""
    outcome = []

    async def http(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except OSError as error:
            outcome.append(error)
            assert (await receive())["type"] == "http.disconnect"
            raise

    async with serving(http=http) as house:
        async with house.connect() as peer:
            await peer.send(GET + b"\r\n")
            await peer.head()
        await house.wait_for(lambda: outcome)
        await house.wait_alone()


async def test_expect_continue():
    """A body is asked for only when it is wanted."""
    async with serving() as house, house.connect() as peer:
        await peer.send(
            b"POST /length HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        assert await peer.status() == 100
        await peer.send(b"abc")
        assert (await peer.response())[2] == b"3"


async def test_rate_of_an_address(autojump_clock):
    """Above its rate an address gets 429 with Retry-After; handshakes count too."""
    async with serving(ServingLimits(requests_per_second=1, request_burst=3)) as house:
        async with house.connect() as peer:
            await peer.send((GET + b"\r\n") * 3)
            assert [await peer.status() for _ in range(2)] == [200, 200]
            status, head, body = await peer.response()
            assert status == 429
            assert b"retry-after: 1" in head.lower()
            assert b"application/problem+json" in head
            problem = {
                "type": "about:blank",
                "title": "Too Many Requests",
                "status": 429,
                "code": "rate_limited",
            }
            assert json.loads(body) == problem
        async with house.connect() as peer:
            await peer.send(UPGRADE + b"\r\n")
            assert await peer.status() == 429
        assert house.statistics.rate_limited == 2


async def test_head_request():
    """HEAD gets the head alone, and the connection goes on."""
    async with serving() as house, house.connect() as peer:
        await peer.send(b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n" + GET + b"\r\n")
        head = await peer.head()
        assert head.startswith(b"HTTP/1.1 200")
        assert (await peer.response())[2] == b"ok"


async def test_http10_closes():
    """An HTTP/1.0 client is answered, and the end of the answer is the end of the connection."""
    async with serving() as house, house.connect() as peer:
        await peer.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await peer.rest()).endswith(b"\r\n\r\nok")


async def test_answer_before_the_body():
    """An application that answers without reading its body ends the connection, and says so."""

    async def http(scope, receive, send):
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with serving(http=http) as house, house.connect() as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\nhalf")
        status, head, _ = await peer.response()
        assert status == 403
        assert b"connection: close" in head.lower()


async def test_message_in_the_same_piece_as_the_upgrade_answer():
    """The socket of a used connection echoes like any other."""
    async with serving() as house, house.websocket() as peer:
        await peer.send(frame(b"a") + frame(b"b"))
        assert [(await peer.frame())[1] for _ in range(2)] == [b"a", b"b"]
