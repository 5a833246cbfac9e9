"""The wall clock jumps under a server: whoever is there stays, and tokens hold for their time and a small leeway."""

from datetime import datetime, timedelta

import pytest
import trio
import trio.testing

from tests.fixtures.house import running_server, signed_up
from tests.fixtures.sse import watched
from tests.fixtures.vitals import at_rest

MODULES = ("app.accounts.service", "app.web.socket", "app.web.feeds", "nurseries.events")


class Wall:
    """How far the clock is off."""

    def __init__(self) -> None:
        self.off = timedelta()

    def jump(self, **by: float) -> None:
        self.off = timedelta(**by)


@pytest.fixture
def wall(monkeypatch) -> Wall:
    """The wall clock of the server, which a test may move."""
    wall = Wall()

    class Moved(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + wall.off

    for module in MODULES:
        monkeypatch.setattr(f"{module}.datetime", Moved)
    return wall


@pytest.mark.parametrize("by", [{"days": 1}, {"days": -1}, {"days": 3650}])
async def test_timers_do_not_notice(wall, server, alice, by):
    """A socket, a stream and a run that began before go on; nothing is closed and nothing ends early."""
    thread = f"/v1/threads/{await alice.thread()}"
    body = {"content": '{"events":3000,"queries":20}', "agent": "load"}
    async with alice.socket() as socket, watched(alice, f"{thread}/runs", body) as stream:
        first = await stream.until("agent_started")
        wall.jump(**by)
        await socket.send(type="ping")
        await socket.until("pong")
        records = first + await stream.rest()
        assert records[-1].type == "agent_completed"
        assert [record.id for record in records] == list(range(1, 3004))
        await socket.send(type="user_message", thread_id=thread.rpartition("/")[2], content="calculate 6*7")
        await socket.until("agent_completed")
    await at_rest(server)


async def test_tokens_have_a_bounded_leeway(wall, server, alice):
    """Seconds are forgiven either way, hours are not; what is made afterwards holds, and what was made before does again."""
    for jump, status in (
        ({"seconds": 3}, 200),
        ({"seconds": -3}, 200),
        ({"hours": 1}, 401),
        ({"hours": -1}, 401),
        ({}, 200),
    ):
        wall.jump(**jump)
        assert (await alice.http.get("/v1/me")).status_code == status, jump
    for jump in ({"hours": 1}, {"hours": -1}):
        wall.jump(**jump)
        async with signed_up(server) as late:
            assert (await late.http.get("/v1/me")).status_code == 200
            async with late.socket() as socket:
                await socket.send(type="ping")
                await socket.until("pong")


async def test_streams_and_waits_outlast_a_minute(database, mock_clock):
    """Quart ends answers after a minute unless told otherwise: a quiet stream is left open, and who waits gets the end."""
    mock_clock.rate = 1.0
    waited = []
    async with running_server(database.owner) as url, signed_up(url) as user:
        thread, other = [f"/v1/threads/{await user.thread()}" for _ in range(2)]

        async def wait():
            body = {"content": '{"queries":0,"sleep_ms":60000}', "agent": "load"}
            waited.append(await user.http.post(f"{other}/runs?wait=true", json=body, timeout=None))

        async with watched(user, f"{thread}/events") as stream, trio.open_nursery() as nursery:
            async with user.socket() as socket:
                nursery.start_soon(wait)
                await socket.until("agent_started")
            for _ in range(10):
                mock_clock.jump(12)
                await trio.testing.wait_all_tasks_blocked(0.05)  # longer than the database takes to answer
            await user.run(thread.rpartition("/")[2], "time")
            assert (await stream.until("agent_completed"))[0].id == 1
        assert [(answer.status_code, answer.json()["status"]) for answer in waited] == [(200, "completed")]
