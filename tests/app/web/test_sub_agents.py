"""Sub-agents as their user sees them: through sockets, streams and calls."""

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.house import running_server, signed_up
from tests.fixtures.sse import watched
from tests.fixtures.vitals import at_rest

CONTENT = "clerk: calculate 6*7; echo: hello"
ANSWER = (
    "I am the offline model; these are the agents' own answers.\n"
    "clerk: I am the offline model; these are the tools' own answers.\n6*7 = 42\necho: hello"
)


@pytest.fixture
async def server(database) -> AsyncIterator[str]:
    """A server that offers the supervisor."""
    async with running_server(database.owner, agents="tests.fixtures.desk_agents") as url:
        yield url


async def test_a_stream_of_a_run_has_its_sub_agents(alice, server):
    """Their events among its own, numbered without a gap; it ends with the run, and not with the first of them."""
    thread = await alice.thread()
    async with watched(alice, f"/v1/threads/{thread}/runs", {"content": CONTENT, "agent": "desk"}) as stream:
        records = await stream.rest()
    assert [record.id for record in records] == list(range(1, len(records) + 1))
    run_id = records[0].data["run_id"]
    started = [record.data for record in records if record.type == "agent_started"]
    assert [event["payload"]["depth"] for event in started] == [0, 1, 1]
    assert started[0]["run_id"] == run_id
    for event in started[1:]:
        assert event["run_id"].startswith(f"{run_id}_{event['payload']['agent']}_")
        assert event["payload"]["parent_request_id"] == started[0]["payload"]["request_id"]
    ended = [record.data for record in records if record.type == "agent_completed"]
    assert {event["payload"]["agent"] for event in ended[:2]} == {"clerk", "echo"}
    assert (ended[2]["run_id"], ended[2]["payload"]["depth"]) == (run_id, 0)
    assert records[-1].data == ended[2]
    answer = "".join(
        record.data["payload"]["text"]
        for record in records
        if record.type == "message_delta" and record.data["run_id"] == run_id
    )
    assert answer == ended[2]["payload"]["output"] == ANSWER
    assert ended[2]["payload"]["usage"]["sub_agents"] == 2
    await at_rest(server)


async def test_only_the_answer_is_a_message(alice):
    """What sub-agents say is in the event log, and in no conversation."""
    thread = await alice.thread()
    outcome = await alice.run(thread, CONTENT, agent="desk")
    assert outcome["output"] == ANSWER
    messages = (await alice.http.get(f"/v1/threads/{thread}/messages")).json()["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("user", CONTENT),
        ("assistant", ANSWER),
    ]


async def test_their_events_reach_their_user_alone(alice, server):
    """Both sockets of the user get them all; a stranger's gets none."""
    async with (
        signed_up(server) as bob,
        alice.socket() as one,
        alice.socket() as other,
        bob.socket() as stranger,
    ):
        thread = await alice.thread()
        await one.send(type="user_message", thread_id=thread, content=CONTENT, agent="desk")

        async def heard(socket):
            events = []
            while not events or events[-1]["type"] != "agent_completed" or events[-1]["payload"]["depth"]:
                events += [frame for frame in [await socket.receive()] if frame["type"] != "accepted"]
            return events

        events = await heard(one)
        assert await heard(other) == events
        assert {event["user_id"] for event in events} == {alice.user_id}
        assert len({event["run_id"] for event in events}) == 3
        await stranger.send(type="ping")
        assert await stranger.receive() == {"type": "pong"}


async def test_a_cancelled_run_takes_its_sub_agents_along(alice, server):
    """The call returns when all has ended; a sub-agent's own id is nothing that could be asked for."""
    thread = await alice.thread()
    body = {"content": "patient: a; patient: b", "agent": "desk"}
    async with watched(alice, f"/v1/threads/{thread}/runs", body) as stream:
        records = await stream.until("message_delta")
        records += await stream.until("message_delta")
        run_id = records[0].data["run_id"]
        child = records[-1].data["run_id"]
        assert child != run_id
        assert (await alice.http.get(f"/v1/threads/{thread}/runs/{child}")).status_code == 404
        refused = await alice.http.post(f"/v1/threads/{thread}/runs/{child}/cancel", json={})
        assert refused.status_code == 404
        done = await alice.http.post(f"/v1/threads/{thread}/runs/{run_id}/cancel", json={})
        assert done.json() == {"run_id": run_id, "status": "cancelled"}
        (last,) = await stream.rest()
        assert (last.type, last.data["run_id"]) == ("run_cancelled", run_id)
    await at_rest(server)


async def test_another_users_rows_are_in_no_sub_agents_reach(alice, server):
    """A prompt that asks for them, with words, ids and quotes, gets none, through however many agents."""
    async with signed_up(server) as bob:
        secret = await bob.thread()
        await bob.run(secret, "canary-5d20 is my secret", agent="echo")
        thread = await alice.thread()
        content = (
            f"clerk: search canary-5d20; clerk: search secret user_id:{bob.user_id}; clerk: search {secret};"
            " clerk: search ') OR true --"
        )
        outcome = await alice.run(thread, content, agent="desk")
        assert outcome["output"].count("nothing found") == 4
        assert "is my secret" not in outcome["output"]
        stream = await alice.http.get(f"/v1/threads/{secret}/messages")
        assert stream.status_code == 404
        own = await bob.run(await bob.thread(), "clerk: search canary-5d20", agent="desk")
        assert "is my secret" in own["output"], "the search itself finds it, for whom it belongs to"
