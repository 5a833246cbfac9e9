"""Streams of events that no event ends: the run's end could not be written, or the thread is gone."""

import json

import psycopg
import pytest

from tests.fixtures.sse import watched
from tests.fixtures.vitals import at_rest

LONG = {"content": json.dumps({"queries": 0, "sleep_ms": 60_000}), "agent": "load"}


@pytest.fixture
async def thread(alice):
    """A conversation of Alice's."""
    return f"/v1/threads/{await alice.thread()}"


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Let nothing else wake a stream."""
    monkeypatch.setattr("app.chat.feed.KEEP_ALIVE_SECONDS", 3600)


def spoil(owner: str, thread: str) -> None:
    """Take the next number of a thread's log with a row that shows nothing, so that no more can be written to it."""
    with psycopg.connect(owner) as connection:
        query = (
            "SELECT last_seq, user_id, lines FROM events WHERE thread_id = %s ORDER BY first_seq DESC LIMIT 1"
        )
        thread_id = thread.rpartition("/")[2]
        last, user_id, lines = connection.execute(query, (thread_id,)).fetchone()
        nothing = json.dumps({**json.loads(lines.split("\n")[0]), "seq": 0})
        connection.execute(
            "INSERT INTO events (thread_id, first_seq, last_seq, user_id, lines) VALUES (%s, %s, %s, %s, %s)",
            (thread_id, last + 1, last + 1, user_id, nothing),
        )


async def test_a_run_whose_end_cannot_be_written_ends_its_stream(server, alice, bob, thread, database):
    """Its readers, one that comes later with the same key among them, are not left waiting; nobody else notices."""
    other = f"/v1/threads/{await bob.thread()}"
    async with (
        watched(bob, f"{other}/runs", LONG) as stranger,
        watched(alice, f"{thread}/runs", LONG, Idempotency_Key="k") as stream,
    ):
        theirs = await stranger.until("agent_started")
        seen = await stream.until("agent_started")
        spoil(database.owner, thread)
        await alice.http.post(f"{thread}/runs/{seen[0].data['run_id']}/cancel")
        assert await stream.rest() == []
        async with watched(alice, f"{thread}/runs", LONG, Idempotency_Key="k") as again:
            assert await again.rest() == seen
        await bob.http.post(f"{other}/runs/{theirs[0].data['run_id']}/cancel")
        assert [record.type for record in await stranger.rest()] == ["run_cancelled"]
    await at_rest(server)


@pytest.mark.parametrize("active", [False, True])
async def test_a_deleted_thread_ends_its_streams(server, alice, thread, active):
    """After what its runs had to say last; a stream of another thread goes on."""
    other = f"/v1/threads/{await alice.thread()}"
    async with watched(alice, f"{thread}/events") as stream, watched(alice, f"{other}/events") as neighbour:
        if active:
            await alice.http.post(f"{thread}/runs", json=LONG)
            await stream.until("agent_started")
        assert (await alice.http.delete(thread)).status_code == 204
        said = [(record.type, record.data["payload"]) for record in await stream.rest()]
        assert said == ([("run_cancelled", {"reason": "thread deleted"})] if active else [])
        await alice.run(other.rpartition("/")[2], "time")
        assert (await neighbour.until("agent_completed"))[-1].type == "agent_completed"
    assert (await alice.http.get(f"{thread}/events")).status_code == 404
    await at_rest(server)


async def test_nobody_ends_somebody_elses_stream(server, alice, bob, thread):
    """Who tries to delete another user's thread hears that there is none, and its readers hear nothing."""
    async with watched(alice, f"{thread}/events") as stream:
        assert (await bob.http.delete(thread)).status_code == 404
        await alice.run(thread.rpartition("/")[2], "time")
        assert (await stream.until("agent_completed"))[0].id == 1
    await at_rest(server)
