"""A COMMIT that nobody answers: what became of a message is looked up, and it is there once or not at all."""

import psycopg
import pytest
import trio

from tests.fixtures.house import running_server, signed_up
from tests.fixtures.postgres_proxy import proxied

GATE = """
    CREATE FUNCTION wait_for_gate() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN IF NEW.content = ''slow'' THEN PERFORM pg_advisory_xact_lock(77); END IF; RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON messages DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait_for_gate();
"""
AT_GATE = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"


@pytest.fixture
def owner(database):
    with psycopg.connect(database.owner, autocommit=True) as connection:
        yield connection


def said(owner) -> list[str]:
    """Return what users have said, all of them."""
    rows = owner.execute("SELECT content FROM messages WHERE role = 'user' ORDER BY position").fetchall()
    return [content for (content,) in rows]


async def test_an_answer_that_was_lost_is_looked_up(database, owner):
    """The line is cut between the COMMIT and its answer: the message is there, so its run is accepted, once."""
    async with proxied(database.owner) as (proxy, conninfo):
        async with running_server(conninfo) as url, signed_up(url) as user, user.socket() as bystander:
            thread = await user.thread()

            async def committed():
                proxy.cut_after = None
                with trio.fail_after(30):
                    while said(owner) != ["calculate 6*7"]:
                        await trio.lowlevel.checkpoint()

            proxy.committed, proxy.cut_after = committed, b"calculate 6*7"
            headers = {"Idempotency-Key": "k"}
            body = {"content": "calculate 6*7"}
            answer = await user.http.post(f"/v1/threads/{thread}/runs", json=body, headers=headers)
            assert answer.status_code == 202
            assert proxy.cut_after is None, "the line was cut"
            ended = (await bystander.until("agent_completed"))[-1]
            assert (ended["run_id"], ended["seq"] > 2) == (answer.json()["run_id"], True)
            again = await user.http.post(f"/v1/threads/{thread}/runs", json=body, headers=headers)
            assert again.json()["run_id"] == answer.json()["run_id"]
            assert said(owner) == ["calculate 6*7"]
        assert owner.execute("SELECT count(*) FROM runs").fetchone() == (1,)


@pytest.mark.parametrize("over", ["http", "socket"])
async def test_a_backend_that_was_killed_in_its_commit(database, owner, over):
    """It is not there, and so was not accepted: 503, and with the same key it is said once."""
    owner.execute(GATE)
    async with running_server(database.owner) as url, signed_up(url) as user, user.socket() as socket:
        thread = await user.thread()
        refused = []

        async def say():
            if over == "http":
                body, headers = {"content": "slow"}, {"Idempotency-Key": "k"}
                answer = await user.http.post(f"/v1/threads/{thread}/runs", json=body, headers=headers)
                refused.append(
                    (answer.status_code, answer.json().get("code"), "Retry-After" in answer.headers)
                )
            else:
                await socket.send(type="user_message", thread_id=thread, content="slow", client_id="k")
                frame = (await socket.until("error", "accepted"))[-1]
                refused.append((503, frame.get("code"), frame.get("in_reply_to") == "k"))

        owner.execute("SELECT pg_advisory_lock(77)")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            with trio.fail_after(30):
                while not (waiting := owner.execute(AT_GATE).fetchall()):
                    await trio.lowlevel.checkpoint()
            owner.execute("SELECT pg_terminate_backend(%s)", waiting[0])
        assert refused == [(503, "database_unavailable", True)]
        assert said(owner) == []
        owner.execute("SELECT pg_advisory_unlock(77)")
        refused.clear()
        await say()
        assert refused[0][1] is None, "accepted"
        assert said(owner) == ["slow"]
        await socket.until("agent_completed")
    assert owner.execute("SELECT count(*) FROM runs").fetchone() == (1,)
