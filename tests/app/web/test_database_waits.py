"""Locks, a server that hangs, a pool that has nothing left: who waits, for how long, and who does not."""

import os
import signal

import psycopg
import pytest
import trio
import trio.testing
from psycopg.conninfo import conninfo_to_dict

from app.main import ANSWER_MARGIN_SECONDS
from app.settings import PoolSettings
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.sse import watched
from tests.fixtures.vitals import at_rest, samples


@pytest.fixture
def owner(database):
    with psycopg.connect(database.owner) as connection:
        yield connection


async def lock(owner, statement: str, *params: object) -> None:
    """Take a lock, from a thread: who holds it may need this one to let it go."""
    await trio.to_thread.run_sync(owner.execute, statement, params)


async def until(http, name: str, value: float) -> None:
    """Return when a metric is at least that."""
    with trio.fail_after(30):
        while samples((await http.get("/metrics")).text)[name] < value:
            await trio.testing.wait_all_tasks_blocked(0.02)


async def test_a_long_lock_is_a_conflict(database, owner):
    """409 when somebody holds what is to be changed; it can be read meanwhile, and changed afterwards."""
    async with running_server(database.owner, pool=PoolSettings(lock_seconds=0.2)) as url:
        async with signed_up(url) as user:
            thread = f"/v1/threads/{await user.thread(title='kept')}"
            owner.execute(
                "SELECT 1 FROM threads WHERE thread_id = %s FOR UPDATE", (thread.rpartition("/")[2],)
            )
            answer = await user.http.patch(thread, json={"title": "lost"})
            assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
            assert (await user.http.get(thread)).json()["title"] == "kept"
            owner.rollback()
            assert (await user.http.patch(thread, json={"title": "changed"})).status_code == 200
        await at_rest(url)


async def test_the_event_log_waits_out_a_lock(database, owner):
    """A table that is locked for longer than anybody else waits costs no run its events."""
    async with running_server(database.owner, pool=PoolSettings(lock_seconds=0.2)) as url:
        async with signed_up(url) as user:
            thread = f"/v1/threads/{await user.thread()}"
            body = {"content": '{"events":3000,"queries":0}', "agent": "load"}
            async with watched(user, f"{thread}/runs", body) as stream:
                first = await stream.until("message_delta")
                await lock(owner, "LOCK TABLE events IN EXCLUSIVE MODE")  # it can be read
                await until(user.http, "nurseries_log_retries_total", 1)
                owner.rollback()
                records = first + await stream.rest()
            assert [record.id for record in records] == list(range(1, 3004))
            assert records[-1].type == "agent_completed"
        await at_rest(url)


SLOW = """
    CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN IF NEW.role = 'assistant' AND NEW.content LIKE '%%56088%%' THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END
    $$;
    CREATE TRIGGER dawdle BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION dawdle();
"""


async def test_an_answer_that_takes_too_long_to_store_holds_up_nobody_for_ever(database, owner):
    """Its run loses its end, its readers are let go, and everybody else's events are written."""
    owner.execute(SLOW)
    owner.commit()
    async with running_server(database.owner, pool=PoolSettings(statement_seconds=1)) as url:
        async with signed_up(url) as user, signed_up(url) as other, other.socket() as bystander:
            thread, theirs = f"/v1/threads/{await user.thread()}", await other.thread()
            async with watched(user, f"{thread}/runs", {"content": "calculate 123*456"}) as stream:
                await stream.until("agent_started")
                assert (await other.run(theirs, "calculate 6*7"))["status"] == "completed"
                await stream.rest()
            await bystander.until("agent_completed")
            assert (await other.run(theirs, "calculate 7*6"))["status"] == "completed"
        await at_rest(url)


@pytest.mark.parametrize(("method", "code"), [("GET", "database_unavailable"), ("PATCH", "outcome_unknown")])
async def test_a_backend_that_hangs_costs_one_call_and_nobody_else(database, owner, mock_clock, method, code):
    """503 when it has said nothing for its time, to who reads and to who writes; others are served all the while."""
    mock_clock.rate = 1.0
    answers = []
    pool = PoolSettings(size=1)
    async with running_server(database.owner, pool=pool) as url:
        async with signed_up(url) as user, signed_up(url) as other, trio.open_nursery() as nursery:
            thread = f"/v1/threads/{await user.thread()}"
            sessions = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = %s"
            role = conninfo_to_dict(database.request)["user"]
            ((pid,),) = owner.execute(sessions, (role,)).fetchall()

            async def ask():
                body = {"title": "x"} if method == "PATCH" else None
                answers.append(await user.http.request(method, thread, json=body, timeout=None))

            os.kill(pid, signal.SIGSTOP)
            try:
                nursery.start_soon(ask)
                await until(other.http, "nurseries_pool_checked_out", 1)
                await other.thread()
                assert answers == []
                mock_clock.jump(pool.statement_seconds + ANSWER_MARGIN_SECONDS)
                with trio.fail_after(30):
                    while not answers:
                        await trio.testing.wait_all_tasks_blocked(0.02)
                await user.thread()
            finally:
                os.kill(pid, signal.SIGCONT)
            (answer,) = answers
            assert (answer.status_code, answer.json()["code"]) == (503, code)
            assert int(answer.headers["Retry-After"]) >= 1
        await at_rest(url)


async def test_a_pool_that_is_used_up_serves_everybody_in_turn(database, owner):
    """Two connections for eight users, all of them stuck: each is served in the end, nobody twice before another."""
    pool = PoolSettings(size=2, overflow=0, per_user=2)
    name = conninfo_to_dict(database.owner)["dbname"]
    async with running_server(database.owner, pool=pool) as url, trio.open_nursery() as people:
        users, threads, served = [], [], []

        async def live(task_status):
            async with signed_up(url) as user:
                task_status.started(user)
                await trio.sleep_forever()

        for _ in range(8):
            users.append(await people.start(live))
            threads.append(await users[-1].thread())
        await lock(owner, "LOCK TABLE threads IN ACCESS EXCLUSIVE MODE")

        async def rename(number):
            for attempt in range(2):
                answer = await users[number].http.patch(f"/v1/threads/{threads[number]}", json={"title": "x"})
                served.append((attempt, number, answer.status_code))

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(rename, number)
            await until(users[0].http, "nurseries_pool_waiting", 6)
            assert served == []
            with psycopg.connect(database.owner, autocommit=True, dbname="postgres") as outside:
                query = (
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
                )
                with trio.fail_after(60):
                    while (
                        count := outside.execute(query, (name,)).fetchone()[0]
                    ) < 2:  # sent, but not read yet
                        await trio.lowlevel.checkpoint()
                assert count == 2
            owner.rollback()
        assert sorted(served) == [(attempt, number, 200) for attempt in range(2) for number in range(8)]
        assert [attempt for attempt, _, _ in served[:6]] == [0] * 6, "who comes back is behind who waits"
        people.cancel_scope.cancel()
