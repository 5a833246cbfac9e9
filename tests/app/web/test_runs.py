"""Runs over HTTP: started, waited for, cancelled, repeated, refused, and left alone by their client."""

import json
from datetime import datetime

import psycopg
import pytest
import trio

from tests.fixtures.house import running_server, signed_up
from tests.fixtures.sse import asked, watched
from tests.fixtures.vitals import at_rest, samples

MISSING = "01900000-0000-7000-8000-000000000000"
RUN = {"run_id", "status", "agent", "created_at", "started_at", "ended_at"}
ENDS = ("agent_completed", "run_failed", "run_cancelled", "run_interrupted")


def order(**fields):
    """Return the body of a run of the agent `load`; alone it takes no time."""
    return {"content": json.dumps({"queries": 0, **fields}), "agent": "load"}


LONG = order(sleep_ms=60_000)


def problem(answer, status, code, field=None):
    """Check that an answer is this problem."""
    body = answer.json()
    assert (answer.status_code, body["code"], body.get("field")) == (status, code, field), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    return body


@pytest.fixture
async def thread(alice):
    """A conversation of Alice's."""
    return f"/v1/threads/{await alice.thread()}"


async def start(user, thread, body, **options):
    """Start a run and return its id."""
    answer = await user.http.post(f"{thread}/runs", json=body, **options)
    assert answer.status_code == 202, answer.text
    return answer.json()["run_id"]


async def cancel(user, thread, run_id):
    """Cancel a run and return its last status."""
    answer = await user.http.post(f"{thread}/runs/{run_id}/cancel")
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"run_id", "status"}
    return answer.json()["status"]


async def shown(user, thread, run_id):
    """Return a run."""
    answer = await user.http.get(f"{thread}/runs/{run_id}")
    assert answer.status_code == 200
    return answer.json()


async def said(user, thread):
    """Return who said what."""
    messages = (await user.http.get(f"{thread}/messages")).json()["messages"]
    return [(message["role"], message["content"]) for message in messages]


async def begun(user, thread, body):
    """Start a run, return its id once it runs."""
    async with watched(user, f"{thread}/events") as events:
        run_id = await start(user, thread, body)
        while (await events.until("agent_started"))[-1].data["run_id"] != run_id:
            pass
    return run_id


# -- from the start to the end -----------------------------------------------------------------------


async def test_a_run_is_accepted_and_ends_by_itself(server, alice, thread):
    """202 with its id; later the run has its agent, its times and its output."""
    async with watched(alice, f"{thread}/events") as events:
        answer = await alice.http.post(f"{thread}/runs", json={"content": "calculate 6*7"})
        assert answer.status_code == 202
        run_id = answer.json()["run_id"]
        assert answer.json() == {"run_id": run_id, "status": "queued"}
        await events.until("agent_completed")
    run = await shown(alice, thread, run_id)
    assert set(run) == RUN | {"output", "usage"}
    assert (run["run_id"], run["status"], run["agent"]) == (run_id, "completed", "assistant")
    assert "42" in run["output"]
    times = [datetime.fromisoformat(run[name]) for name in ("created_at", "started_at", "ended_at")]
    assert times == sorted(times)
    await at_rest(server)


async def test_waiting_gives_the_outcome(server, alice, thread):
    """200 once the run has ended, with its output."""
    answer = await alice.http.post(f"{thread}/runs?wait=true", json={"content": "calculate 2+2"})
    assert answer.status_code == 200
    outcome = answer.json()
    assert set(outcome) == {"run_id", "status", "output"}
    assert outcome["status"] == "completed"
    assert (await shown(alice, thread, outcome["run_id"]))["output"] == outcome["output"]
    assert await said(alice, thread) == [("user", "calculate 2+2"), ("assistant", outcome["output"])]
    await at_rest(server)


async def test_a_run_that_fails_says_why(server, alice, thread):
    """It is an outcome like any other, with a code."""
    outcome = await alice.run(thread.removeprefix("/v1/threads/"), "no order", agent="load")
    assert outcome["status"] == "failed"
    assert set(outcome["error"]) == {"code", "message"}
    run = await shown(alice, thread, outcome["run_id"])
    assert set(run) == RUN | {"error"}
    assert run["error"] == outcome["error"]
    await at_rest(server)


async def test_a_run_that_waits_has_not_started(server, alice, thread):
    """Queued and running runs show no time that has not come."""
    active = await begun(alice, thread, LONG)
    waiting = await start(alice, thread, LONG)
    first, second = await shown(alice, thread, active), await shown(alice, thread, waiting)
    assert set(first) == set(second) == RUN
    assert (first["status"], first["ended_at"]) == ("running", None)
    assert first["started_at"] is not None
    assert (second["status"], second["started_at"], second["ended_at"]) == ("queued", None, None)
    assert await cancel(alice, thread, waiting) == await cancel(alice, thread, active) == "cancelled"


# -- cancelling --------------------------------------------------------------------------------------


async def test_cancel_answers_when_everything_is_released(server, alice, thread):
    """At that moment nothing of the run is left and its end is in the log; what it said is kept; again is harmless."""
    run_id = await begun(alice, thread, order(events=2000, delta_bytes=500, queries=100, sleep_ms=0))
    assert await cancel(alice, thread, run_id) == "cancelled"
    run = await shown(alice, thread, run_id)
    assert run["ended_at"] is not None
    last = (await alice.http.get(thread)).json()["last_seq"]
    async with watched(alice, f"{thread}/events?after={last - 1}") as events:
        end = await events.record()
    assert (end.type, end.data["run_id"], end.data["payload"]) == (
        "run_cancelled",
        run_id,
        {"reason": "requested"},
    )
    for _ in range(2):
        assert await cancel(alice, thread, run_id) == "cancelled"
    assert (await alice.http.get(thread)).json()["last_seq"] == last
    done = await alice.run(thread.removeprefix("/v1/threads/"), "time")
    assert await cancel(alice, thread, done["run_id"]) == "completed"
    await at_rest(server)


async def test_cancel_leaves_nothing_to_wait_for(server, alice, thread):
    """The pool, the requests and the runs are counted right behind the answer, not some time later."""
    run_id = await begun(alice, thread, order(queries=1000, sleep_ms=60_000))
    assert await cancel(alice, thread, run_id) == "cancelled"
    now = samples((await alice.http.get("/metrics")).text)
    assert {now[f"nurseries_{name}"] for name in ("pool_checked_out", "runs", "requests")} == {0}


async def test_many_cancels_at_once_are_one(server, alice, thread):
    """All are answered with the final status, and the run ends once."""
    run_id = await begun(alice, thread, LONG)
    statuses = []

    async def once():
        statuses.append(await cancel(alice, thread, run_id))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(once)
    assert statuses == ["cancelled"] * 10
    async with watched(alice, f"{thread}/events") as events:
        ends = [record for record in await events.until("run_cancelled") if record.type in ENDS]
    assert len(ends) == 1
    assert (await alice.http.get(thread)).json()["last_seq"] == ends[0].id


# -- when a run is active already --------------------------------------------------------------------


async def test_reject_is_a_conflict_while_a_run_is_active(server, alice, thread):
    """409 with its code and no trace; accepted once the thread is free."""
    run_id = await begun(alice, thread, LONG)
    refused = await alice.http.post(f"{thread}/runs", json={"content": "refused", "on_conflict": "reject"})
    problem(refused, 409, "thread_busy")
    assert [content for _, content in await said(alice, thread)] == [LONG["content"]]
    await cancel(alice, thread, run_id)
    outcome = await alice.run(thread.removeprefix("/v1/threads/"), "time", on_conflict="reject")
    assert outcome["status"] == "completed"


async def test_enqueue_takes_turns(server, alice, thread):
    """In the order of acceptance, one at a time; it is what happens without a word."""
    active = await begun(alice, thread, LONG)
    async with watched(alice, f"{thread}/events?after=2") as events:
        first = await start(alice, thread, order(events=1))
        second = await start(alice, thread, {**order(events=1), "on_conflict": "enqueue"})
        await cancel(alice, thread, active)
        records = await events.until("agent_completed") + await events.until("agent_completed")
    assert [r.data["payload"]["position"] for r in records if r.type == "run_queued"] == [1, 2]
    story = [(r.data["run_id"], r.type) for r in records if r.type in {"agent_started", *ENDS}]
    assert story == [
        (active, "run_cancelled"),
        (first, "agent_started"), (first, "agent_completed"),
        (second, "agent_started"), (second, "agent_completed"),
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["interrupt", "rollback"])
async def test_a_newer_message_ends_the_active_run(server, alice, thread, policy):
    """Before those that wait; `interrupt` keeps what was said, `rollback` removes the messages of that run."""
    active = await begun(alice, thread, order(events=10_000, delta_bytes=100))
    async with watched(alice, f"{thread}/events") as events:
        await events.until("message_delta")
        waiting = await start(alice, thread, order(events=1))
        newer = await start(alice, thread, {"content": "time", "on_conflict": policy})
        ends = [(await events.until(*ENDS))[-1] for _ in range(3)]
    assert [(end.data["run_id"], end.type) for end in ends] == [
        (active, "run_cancelled"), (newer, "agent_completed"), (waiting, "agent_completed"),
    ]  # fmt: skip
    assert ends[0].data["payload"] == {"reason": policy}
    messages = (await alice.http.get(f"{thread}/messages")).json()["messages"]
    kept = [(message["role"], message["content"][:36]) for message in messages if message["run_id"] == active]
    words = [("user", '{"queries": 0, "events": 10000, "del'), ("assistant", alice.user_id)]
    assert kept == (words if policy == "interrupt" else [])
    assert (await shown(alice, thread, active))["status"] == "cancelled"
    await at_rest(server)


async def test_the_queue_of_a_thread_is_bounded(server, alice, bob, thread):
    """The twenty-first that would wait gets 429 and Retry-After; other threads and users are served."""
    active = await begun(alice, thread, LONG)
    waiting = [await start(alice, thread, LONG) for _ in range(20)]
    for policy in ("enqueue", "interrupt", "rollback"):
        answer = await alice.http.post(f"{thread}/runs", json={"content": "x", "on_conflict": policy})
        problem(answer, 429, "rate_limited")
        assert int(answer.headers["Retry-After"]) >= 1
    for user in (alice, bob):
        assert (await user.run(await user.thread(), "time"))["status"] == "completed"
    assert len(await said(alice, thread)) == 21
    for run_id in (*reversed(waiting), active):
        assert await cancel(alice, thread, run_id) == "cancelled"
    await at_rest(server)


# -- what is refused ---------------------------------------------------------------------------------


async def test_what_cannot_be_run_is_refused_by_the_name_of_its_field(server, alice, thread):
    """Nothing of it is stored."""
    for body, field in [
        ({}, "content"),
        ({"content": ""}, "content"),
        ({"content": " \n"}, "content"),
        ({"content": 7}, "content"),
        ({"content": None}, "content"),
        ({"content": "a\x00b"}, "content"),
        ({"content": "x", "on_conflict": "maybe"}, "on_conflict"),
        ({"content": "x", "on_disconnect": "later"}, "on_disconnect"),
        ({"content": "x", "agent": 5}, "agent"),
        ({"content": "x", "user_id": MISSING}, "user_id"),
        ({"content": "x", "run_id": MISSING}, "run_id"),
    ]:
        for query in ("", "?wait=true"):
            problem(await alice.http.post(f"{thread}/runs{query}", json=body), 422, "invalid_field", field)
    for agent in ("nobody", "", "Assistant"):
        refused = await alice.http.post(f"{thread}/runs", json={"content": "x", "agent": agent})
        problem(refused, 422, "unknown_agent", "agent")
    refused = await alice.http.post(f"{thread}/runs", json={"content": "x" * 32_001})
    problem(refused, 422, "too_large", "content")
    lone = await alice.http.post(f"{thread}/runs", content=b'{"content":"\\udc00"}')
    problem(lone, 422, "invalid_field", "content")
    for content in (
        b'{"content":"a","content":"b"}',
        b'{"content":' + b"[" * 100_000,
        b'{"content":NaN}',
        b"",
        b"{}x",
    ):
        answer = await alice.http.post(f"{thread}/runs", content=content)
        assert answer.status_code == (400 if content else 422)
    for wait in ("1", "yes", ""):
        refused = await alice.http.post(f"{thread}/runs", params={"wait": wait}, json={"content": "x"})
        problem(refused, 422, "invalid_field", "wait")
    refused = await alice.http.post(f"{thread}/runs/{MISSING}/cancel", json={"reason": "x"})
    problem(refused, 422, "invalid_field", "reason")
    assert await said(alice, thread) == []
    await at_rest(server)


async def test_the_longest_message_is_taken(server, alice, thread):
    """32,000 characters, whatever they take in bytes."""
    for letter in ("x", "\N{GRINNING FACE}"):
        content = letter * 32_000
        outcome = await alice.run(thread.removeprefix("/v1/threads/"), content)
        assert outcome["status"] == "completed"
        assert ("user", content) in await said(alice, thread)


async def test_agents_are_listed(server, alice, database):
    """With name, description and tools; `load` only where it is enabled."""
    answer = await alice.http.get("/v1/agents")
    assert answer.status_code == 200
    agents = {agent["name"]: agent for agent in answer.json()["agents"]}
    assert all(set(agent) == {"name", "description", "tools"} for agent in agents.values())
    assert set(agents) == {"analyst", "assistant", "load"}
    assert set(agents["assistant"]["tools"]) == {"calculator", "search_messages", "clock"}


async def test_the_load_agent_is_off_unless_enabled(database):
    """It is not listed, and cannot be asked."""
    async with running_server(database.owner, load_agent=False) as url, signed_up(url) as user:
        agents = (await user.http.get("/v1/agents")).json()["agents"]
        assert [agent["name"] for agent in agents] == ["analyst", "assistant"]
        refused = await user.http.post(f"/v1/threads/{await user.thread()}/runs", json=order())
        problem(refused, 422, "unknown_agent", "agent")


# -- idempotency keys --------------------------------------------------------------------------------


async def test_a_key_starts_one_run(server, alice, bob, thread):
    """Same body: the stored answer, while it runs and after; other body: 422; other users: their own keys."""
    key = {"headers": {"Idempotency-Key": "k-1"}}
    first = await alice.http.post(f"{thread}/runs", json=LONG, **key)
    again = await alice.http.post(f"{thread}/runs", json=LONG, **key)
    await cancel(alice, thread, first.json()["run_id"])
    later = await alice.http.post(f"{thread}/runs", json=LONG, **key)
    assert {(answer.status_code, answer.text) for answer in (first, again, later)} == {(202, first.text)}
    waited = await alice.http.post(f"{thread}/runs?wait=true", json=LONG, **key)
    assert (waited.status_code, waited.json()["run_id"]) == (200, first.json()["run_id"])
    assert waited.json()["status"] == "cancelled"
    elsewhere = f"/v1/threads/{await alice.thread()}"
    for path, body in (
        (thread, {**LONG, "content": "{}"}),
        (thread, {**LONG, "on_conflict": "reject"}),
        (elsewhere, LONG),
    ):
        refused = await alice.http.post(f"{path}/runs", json=body, **key)
        problem(refused, 422, "idempotency_key_reused", "Idempotency-Key")
    refused = await alice.http.post("/v1/threads", json={}, **key)
    problem(refused, 422, "idempotency_key_reused", "Idempotency-Key")
    assert [content for _, content in await said(alice, thread)] == [LONG["content"]]
    theirs = await bob.http.post(f"/v1/threads/{await bob.thread()}/runs", json=order(), **key)
    assert theirs.status_code == 202
    assert theirs.json()["run_id"] != first.json()["run_id"]
    for wrong in ("", "k" * 256):
        refused = await alice.http.post(f"{thread}/runs", json=LONG, headers={"Idempotency-Key": wrong})
        problem(refused, 422, "invalid_field", "Idempotency-Key")
    await at_rest(server)


async def test_twenty_at_once_with_one_key_start_one_run(server, alice, thread, database):
    """All get the same outcome, and there is one run and one message in the database."""
    answers = []

    async def ask():
        answer = await alice.http.post(
            f"{thread}/runs?wait=true", json={"content": "time"}, headers={"Idempotency-Key": "same"}
        )
        answers.append((answer.status_code, answer.text))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert len(set(answers)) == 1
    assert answers[0][0] == 200
    with psycopg.connect(database.owner) as owner:
        for table, count in (("runs", 1), ("messages", 2), ("idempotency_keys", 1)):
            assert owner.execute(f"SELECT count(*) FROM {table}").fetchone() == (count,)
    await at_rest(server)


# -- clients that leave ------------------------------------------------------------------------------


def leaving(user, thread, way, body):
    """Ask for a run and its end, one way or the other; to leave the block is to leave."""
    if way == "wait":
        return asked(user, "POST", f"{thread}/runs?wait=true", body)
    return asked(user, "POST", f"{thread}/runs", body, Accept="application/json;q=0.1, Text/Event-Stream")


@pytest.mark.parametrize("way", ["wait", "stream"])
async def test_a_run_ends_with_its_client_if_it_was_asked_to(server, alice, thread, way):
    """In a pause, among queries, among words: released within the cleanup, and ended in the log as `disconnected`."""
    async with watched(alice, f"{thread}/events") as events:
        for body, stage in [
            (LONG, "agent_started"),
            (order(queries=1000, sleep_ms=60_000), "agent_started"),
            (order(events=10_000, delta_bytes=100), "message_delta"),
        ]:
            async with leaving(alice, thread, way, {**body, "on_disconnect": "cancel"}):
                run_id = (await events.until(stage))[-1].data["run_id"]
            end = (await events.until(*ENDS))[-1]
            assert (end.type, end.data["run_id"]) == ("run_cancelled", run_id)
            assert end.data["payload"] == {"reason": "disconnected"}
            assert (await shown(alice, thread, run_id))["status"] == "cancelled"
    await at_rest(server)


@pytest.mark.parametrize("way", ["wait", "stream"])
async def test_a_run_goes_on_without_its_client(server, alice, thread, way):
    """As it does without a word: the answer is there for whoever comes back."""
    async with watched(alice, f"{thread}/events") as events:
        async with leaving(alice, thread, way, order(events=10_000, delta_bytes=100)):
            await events.until("message_delta")
        end = (await events.until(*ENDS))[-1]
        assert end.type == "agent_completed"
        assert len(end.data["payload"]["output"]) == 1_000_000
        async with leaving(alice, thread, way, {**LONG, "on_disconnect": "continue"}):
            run_id = (await events.until("agent_started"))[-1].data["run_id"]
    assert (await shown(alice, thread, run_id))["status"] == "running"
    assert await cancel(alice, thread, run_id) == "cancelled"
    await at_rest(server)


@pytest.mark.parametrize("way", ["wait", "stream"])
async def test_a_client_that_leaves_at_any_moment_leaves_no_run(server, alice, way):
    """From right after sending on: whatever was accepted has ended as `disconnected`, and nothing is held."""
    threads = [f"/v1/threads/{await alice.thread()}" for _ in range(25)]
    for steps, thread in enumerate(threads):
        async with leaving(alice, thread, way, {**LONG, "on_disconnect": "cancel"}):
            for _ in range(steps * 4):
                await trio.lowlevel.checkpoint()
    await at_rest(server)
    accepted = 0
    for thread in threads:
        last = (await alice.http.get(thread)).json()["last_seq"]
        if last:
            accepted += 1
            async with watched(alice, f"{thread}/events?after={last - 1}") as events:
                end = await events.record()
            assert (end.type, end.data["payload"]) == ("run_cancelled", {"reason": "disconnected"})
        else:
            assert await said(alice, thread) == []
    assert accepted > 0


async def test_a_client_that_has_its_answer_has_not_left(server, alice, thread):
    """202 is an answer: `on_disconnect: cancel` is about those who wait for the end."""
    run_id = await begun(alice, thread, {**LONG, "on_disconnect": "cancel"})
    assert (await shown(alice, thread, run_id))["status"] == "running"
    await cancel(alice, thread, run_id)
