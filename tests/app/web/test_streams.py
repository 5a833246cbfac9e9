"""Server-sent events: of one run as it happens, and of a thread from any number on."""

import hashlib
import json

import pytest
import trio

from tests.fixtures.house import PASSWORD
from tests.fixtures.sse import asked, watched
from tests.fixtures.vitals import at_rest

MISSING = "01900000-0000-7000-8000-000000000000"
ENVELOPE = {
    "type", "event_id", "seq", "user_id", "thread_id", "run_id", "timestamp", "payload", "delivery_checksum",
}  # fmt: skip
ENDS = ("agent_completed", "run_failed", "run_cancelled", "run_interrupted")


def order(**fields):
    """Return the body of a run of the agent `load`; alone it takes no time."""
    return {"content": json.dumps({"queries": 0, **fields}), "agent": "load"}


LONG = order(sleep_ms=60_000)


@pytest.fixture
async def thread(alice):
    """A conversation of Alice's."""
    return f"/v1/threads/{await alice.thread()}"


async def cancel(user, thread, run_id):
    """End a run."""
    assert (await user.http.post(f"{thread}/runs/{run_id}/cancel")).json()["status"] == "cancelled"


async def test_a_run_is_streamed_until_its_end(server, alice, thread):
    """Numbers, types and envelopes as in the protocol; the stream ends with the run."""
    async with watched(alice, f"{thread}/runs", {"content": "calculate 6*7"}) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        records = await stream.rest()
    assert list(dict.fromkeys(record.type for record in records)) == [
        "run_queued", "agent_started", "agent_thinking", "tool_executing", "tool_completed", "message_delta", "agent_completed",
    ]  # fmt: skip
    thread_id, run_id = thread.rpartition("/")[2], records[0].data["run_id"]
    checksum = hashlib.sha256(f"{alice.user_id}:{thread_id}:{run_id}".encode()).hexdigest()[:16]
    assert [record.id for record in records] == list(range(1, len(records) + 1))
    for record in records:
        assert set(record.data) == ENVELOPE
        assert (record.data["seq"], record.data["type"]) == (record.id, record.type)
        assert record.data["event_id"] == f"{thread_id}:{record.id}"
        assert (record.data["user_id"], record.data["thread_id"], record.data["run_id"]) == (
            alice.user_id,
            thread_id,
            run_id,
        )
        assert record.data["delivery_checksum"] == checksum
    said = "".join(record.data["payload"]["text"] for record in records if record.type == "message_delta")
    assert said == records[-1].data["payload"]["output"]
    await at_rest(server)


async def test_a_stream_of_a_run_tells_of_no_other(server, alice, thread):
    """Not of the one that is active in the same thread, and not of those in other threads."""
    async with watched(alice, f"{thread}/events") as events:
        active = (await alice.http.post(f"{thread}/runs", json=LONG)).json()["run_id"]
        await events.until("agent_started")
        async with watched(alice, f"{thread}/runs", order(events=3)) as stream:
            (queued,) = await stream.until("run_queued")
            assert queued.data["run_id"] != active
            await alice.run(await alice.thread(), "time")
            await cancel(alice, thread, active)
            records = [queued, *await stream.rest()]
    assert {record.data["run_id"] for record in records} == {queued.data["run_id"]}
    assert [record.type for record in records] == [
        "run_queued",
        "agent_started",
        *["message_delta"] * 3,
        "agent_completed",
    ]
    await at_rest(server)


async def test_a_repeated_key_streams_the_same_run_again(server, alice, thread):
    """The stored answer of a stream is the stream, to the letter."""
    streams = []
    for _ in range(2):
        async with watched(alice, f"{thread}/runs", {"content": "time"}, Idempotency_Key="k") as stream:
            streams.append(await stream.rest())
        await alice.run(thread.rpartition("/")[2], "something between")
    assert streams[0] == streams[1]
    assert streams[0][-1].type == "agent_completed"


async def test_a_stream_ends_with_its_run_however_that_ends(server, alice, thread):
    """Cancelled by a newer message, or failed."""
    for on_conflict in ("interrupt", "rollback"):
        async with watched(alice, f"{thread}/runs", LONG) as stream:
            await stream.until("agent_started")
            await alice.run(thread.rpartition("/")[2], "time", on_conflict=on_conflict)
            assert [record.type for record in await stream.rest()] == ["run_cancelled"]
    async with watched(alice, f"{thread}/runs", {"content": "no order", "agent": "load"}) as stream:
        assert (await stream.rest())[-1].type == "run_failed"
    await at_rest(server)


async def test_the_events_of_a_thread_are_replayed_from_any_number_and_go_on(server, alice, thread):
    """`after` and `Last-Event-ID` give exactly the suffix, and then what happens, with no gap and no repeat."""
    thread_id = thread.rpartition("/")[2]
    for _ in range(3):
        await alice.run(thread_id, "calculate 1+1")
    last = (await alice.http.get(thread)).json()["last_seq"]
    async with watched(alice, f"{thread}/events") as stream:
        whole = [await stream.record() for _ in range(last)]
    assert [record.id for record in whole] == list(range(1, last + 1))
    for cursor in (0, 1, 7, last - 1, last):
        async with (
            watched(alice, f"{thread}/events?after={cursor}") as one,
            watched(alice, f"{thread}/events?after=3", Last_Event_ID=str(cursor)) as other,
        ):
            for stream in (one, other):
                assert [await stream.record() for _ in range(last - cursor)] == whole[cursor:]
            await alice.run(thread_id, "time")
            news = await one.until("agent_completed")
            assert await other.until("agent_completed") == news
        assert [record.id for record in news] == list(range(last + 1, last + 1 + len(news)))
        last, whole = news[-1].id, whole + news
    await at_rest(server)


async def test_readers_that_join_while_a_run_talks_miss_nothing(server, alice, thread):
    """Whenever they join and from wherever, each sees every number once, between log and live."""
    heard = []

    async def read(cursor):
        async with watched(alice, f"{thread}/events?after={cursor}") as stream:
            records = await stream.until("agent_completed")
        assert [record.id for record in records] == list(range(cursor + 1, records[-1].id + 1))
        heard.append(records[-1].id)

    async with watched(alice, f"{thread}/runs", order(events=1500, delta_bytes=40)) as first:
        async with trio.open_nursery() as readers:
            for _ in range(20):
                record = await first.record()
                readers.start_soon(read, record.id // 2)
        await first.rest()
    assert heard == [1503] * 20
    await at_rest(server)


async def test_a_reader_that_pauses_gets_all_the_same(server, alice, thread, monkeypatch):
    """What overflowed meanwhile is read from the log: the exact sequence, and nobody waited for it."""
    monkeypatch.setattr("app.chat.feed.FEED_EVENTS", 8)  # fewer than one batch of the log holds
    async with watched(alice, f"{thread}/events") as slow:
        outcome = await alice.run(
            thread.rpartition("/")[2], order(events=4000, delta_bytes=250)["content"], agent="load"
        )
        assert outcome["status"] == "completed"
        records = await slow.until("agent_completed")
    assert [record.id for record in records] == list(range(1, 4004))
    await at_rest(server)


async def test_a_cursor_beyond_the_log_is_told_so_and_goes_on_from_its_end(server, alice, thread):
    """First what a socket is told, under the `id:` to come back with; what comes next follows, from the first on."""
    await alice.run(thread.rpartition("/")[2], "time")
    last = (await alice.http.get(thread)).json()["last_seq"]
    for cursor in (str(last + 1), "1000", "9" * 18):
        async with watched(alice, f"{thread}/events", Last_Event_ID=cursor) as stream:
            assert stream.status == 200
            told = await stream.record()
            assert (told.id, told.type) == (last, "subscribed")
            assert told.data == {
                "type": "subscribed",
                "thread_id": thread.rpartition("/")[2],
                "after": int(cursor),
                "last_seq": last,
                "recovered": False,
            }
            await alice.run(thread.rpartition("/")[2], "time")
            news = await stream.until("agent_completed")
        assert news[0].id == last + 1
        last = news[-1].id


async def test_what_is_no_cursor_is_refused(server, alice, bob, thread):
    """422 by its name; somebody else's thread and one that is not there are 404 before a single byte."""
    for cursor in ("-1", "x", "1.5", "9" * 19, "٣"):
        answer = await alice.http.get(f"{thread}/events", params={"after": cursor})
        assert (answer.status_code, answer.json()["field"]) == (422, "after")
    for cursor in ("-1", "x", "9" * 19):
        answer = await alice.http.get(f"{thread}/events", headers={"Last-Event-ID": cursor})
        assert (answer.status_code, answer.json()["field"]) == (422, "Last-Event-ID")
    for path in (f"{thread}/events", f"/v1/threads/{MISSING}/events", "/v1/threads/x/events"):
        for headers in ({}, {"Last-Event-ID": "2"}):
            answer = await bob.http.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_nobody_hears_of_somebody_elses_thread(server, alice, bob, thread):
    """Two users stream at the same time, and each stream carries one user's events alone."""
    theirs = f"/v1/threads/{await bob.thread()}"
    async with watched(alice, f"{thread}/events") as mine, watched(bob, f"{theirs}/events") as other:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(alice.run, thread.rpartition("/")[2], "time")
                nursery.start_soon(bob.run, theirs.rpartition("/")[2], "time")
        for user, stream in ((alice, mine), (bob, other)):
            records = [record for _ in range(5) for record in await stream.until("agent_completed")]
            assert {record.data["user_id"] for record in records} == {user.user_id}
            assert [record.id for record in records] == list(range(1, len(records) + 1))
    await at_rest(server)


async def test_a_stream_ends_with_the_session(server, alice, thread, monkeypatch):
    """Logout ends the streams of that session at once; a run that goes on by itself is not touched."""
    monkeypatch.setattr("app.chat.feed.KEEP_ALIVE_SECONDS", 3600)  # nothing else wakes them
    async with watched(alice, f"{thread}/events") as events, watched(alice, f"{thread}/runs", LONG) as run:
        started = (await run.until("agent_started"))[-1]
        await events.until("agent_started")
        assert (await alice.http.post("/v1/auth/logout")).status_code == 204
        assert await events.rest() == []
        assert await run.rest() == []
    login = {"email": alice.email, "password": PASSWORD}
    token = (await alice.http.post("/v1/auth/login", json=login)).json()["access_token"]
    alice.http.headers["Authorization"] = f"Bearer {token}"
    run = (await alice.http.get(f"{thread}/runs/{started.data['run_id']}")).json()
    assert run["status"] == "running"
    await cancel(alice, thread, run["run_id"])
    await at_rest(server)


async def test_head_of_a_stream_has_an_end(server, alice, thread):
    """HEAD is answered and over."""
    with trio.fail_after(10):
        answer = await alice.http.head(f"{thread}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    await at_rest(server)


async def test_a_reader_that_leaves_is_forgotten(server, alice, thread):
    """Before the first byte, in the replay, and while all is quiet."""
    await alice.run(thread.rpartition("/")[2], order(events=5000, delta_bytes=100)["content"], agent="load")
    for steps in range(0, 60, 6):
        async with asked(alice, "GET", f"{thread}/events", Accept="text/event-stream"):
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
    async with watched(alice, f"{thread}/events") as stream:
        await stream.record()
    async with watched(alice, f"{thread}/events") as stream:
        await stream.until("agent_completed")
    await at_rest(server)


async def test_a_deleted_thread_ends_the_streams_of_its_runs(server, alice, thread):
    """With their last event."""
    async with watched(alice, f"{thread}/runs", LONG) as stream:
        await stream.until("agent_started")
        assert (await alice.http.delete(thread)).status_code == 204
        (end,) = await stream.rest()
    assert (end.type, end.data["payload"]) == ("run_cancelled", {"reason": "thread deleted"})
    await at_rest(server)


async def test_a_quiet_stream_says_so(server, alice, thread, monkeypatch):
    """A comment now and then keeps proxies from closing it."""
    monkeypatch.setattr("app.chat.feed.KEEP_ALIVE_SECONDS", 0.01)
    async with watched(alice, f"{thread}/events") as stream:
        assert [await stream.block() for _ in range(3)] == [": all quiet"] * 3
    await at_rest(server)
