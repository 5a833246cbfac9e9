"""HTTP/2: concurrent answers, real backpressure, deadlines and an orderly end."""

import pytest
import trio
import trio.testing

from nurseries.serving import ServingLimits
from tests.serving.http2_peer import client, quick


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
    told = trio.Event()

    async def http(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(1_000):
                await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        except OSError:
            told.set()
            raise
        raise AssertionError("nothing holds it back")

    async with quick(certificates, limits=ServingLimits(), http=http) as house, client(house) as made:
        await made.ask(1)
        while 1 not in made.reset:
            assert await made.read(acknowledge=False)
        await told.wait()
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
    """A body that does not come is answered 408, long before the application would lose its patience."""
    async with quick(certificates) as house, client(house) as made:
        began = trio.current_time()
        await made.ask(1, "/length", "POST", end=False)
        await made.until(1)
        assert made.status[1] == 408
        assert trio.current_time() - began == pytest.approx(30, abs=1)


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


async def test_rate_of_an_address(certificates, autojump_clock):
    """Above its rate an address gets 429 on each stream."""
    limits = ServingLimits(requests_per_second=1, request_burst=2)
    async with quick(certificates, limits=limits) as house, client(house) as made:
        for stream in (1, 3, 5):
            await made.ask(stream)
        await made.until(1, 3, 5)
        assert sorted(made.status.values()) == [200, 429, 429]


async def test_drain(certificates, autojump_clock):
    """Draining refuses new streams, completes the others, and says GOAWAY; to who has none, at once."""
    answer = trio.Event()

    async def http(scope, receive, send):
        await answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with (
        quick(certificates, http=http, limits=ServingLimits()) as house,
        client(house) as made,
        client(house) as idle,
    ):
        await made.ask(1)
        await house.wait_for(lambda: house.statistics.requests == 1)
        began = trio.current_time()
        house.listener.drain()
        while idle.terminated is None:
            await idle.read()
        await made.ask(3)
        while 3 not in made.reset:
            await made.read()
        answer.set()
        await made.until(1)
        assert made.status == {1: 200}
        while made.terminated is None:
            await made.read()
        assert trio.current_time() - began < 1


async def test_disconnect_reaches_the_handlers(certificates):
    """When the connection goes, all its handlers end."""
    async with quick(certificates) as house:
        async with client(house) as made:
            await made.ask(1, "/wait")
            await made.ask(3, "/wait")
            await house.wait_for(lambda: house.events == ["began", "began"])
        await house.wait_for(lambda: house.events == ["began", "began", "ended", "ended"])
