"""A whole server whose models are a third party's: what users see of them, and what they cannot see."""

import json
from contextlib import asynccontextmanager

import psycopg
import pytest
import trio

from tests.fixtures.aimock import KEY, MODELS, tapped
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.roles import promote

ENDS = ("agent_completed", "run_failed", "run_cancelled")
KINDS = pytest.mark.parametrize("kind", ["openai", "anthropic"])


@asynccontextmanager
async def a_user_of(database, *models):
    """Serve with these models, for one user."""
    async with running_server(database.owner, models=models) as url, signed_up(url) as user:
        yield user


async def said(socket, thread_id, content):
    """Send a message, and return the events up to the end of its run."""
    await socket.send(type="user_message", thread_id=thread_id, content=content)
    frames = await socket.until(*ENDS)
    return [(frame["type"], frame["payload"]) for frame in frames if "payload" in frame]


def only(kind, events):
    return [payload for event, payload in events if event == kind]


async def messages(user, thread_id):
    answer = await user.http.get(f"/v1/threads/{thread_id}/messages")
    return [(message["role"], message["content"]) for message in answer.json()["messages"]]


@KINDS
async def test_a_chat(database, aimock, kind):
    """Text and thinking stream to the socket, the tokens are told, and the next question carries the conversation."""
    await aimock.says("hello", {"content": "Hello to you.", "reasoning": "a greeting"}, chunkSize=5)
    await aimock.says("and now", {"content": "More.", "usage": {"prompt_tokens": 9, "input_tokens": 9}})
    async with a_user_of(database, aimock.model(kind)) as user, user.socket() as socket:
        thread_id = await user.thread()
        events = await said(socket, thread_id, "hello")
        assert [payload["text"] for payload in only("message_delta", events)] == ["Hello", " to y", "ou."]
        assert [payload["text"] for payload in only("agent_thinking", events)] == ["a gre", "eting"]
        (completed,) = only("agent_completed", events)
        assert completed["output"] == "Hello to you."
        assert completed["usage"]["model"] == MODELS[kind]
        (completed,) = only("agent_completed", await said(socket, thread_id, "and now"))
        assert completed["usage"]["input_tokens"] == 9
    told = (await aimock.requests())[1]["messages"]
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert "Hello to you." in json.dumps(told)


@KINDS
async def test_tools(database, aimock, kind):
    """Two calls of one answer are made, told and answered; the model says the rest."""
    calls = [
        {"name": "calculator", "arguments": {"expression": "6*7"}},
        {"name": "clock", "arguments": {}},
    ]
    await aimock.says({"userMessage": "both", "hasToolResult": False}, {"toolCalls": calls})
    await aimock.says({"userMessage": "both", "hasToolResult": True}, "Forty-two, at last.")
    async with a_user_of(database, aimock.model(kind)) as user, user.socket() as socket:
        events = await said(socket, await user.thread(), "both")
    assert {payload["tool"] for payload in only("tool_executing", events)} == {"calculator", "clock"}
    done = {payload["tool"]: payload for payload in only("tool_completed", events)}
    assert done["calculator"]["result"] == "42"
    assert done["clock"]["ok"]
    (completed,) = only("agent_completed", events)
    assert completed["output"] == "Forty-two, at last."
    assert (completed["usage"]["steps"], completed["usage"]["tool_calls"]) == (2, 2)


async def test_a_cascade(database, aimock):
    """One model is busy, one is broken, the third answers; the run tells which."""
    await aimock.refuses("hello", 429, model="busy", retryAfter=60)
    await aimock.refuses("hello", 500, model="broken")
    await aimock.says("hello", "hi")
    models = [
        aimock.model("openai", name="busy"),
        aimock.model("anthropic", name="broken"),
        aimock.model("openai"),
    ]
    async with a_user_of(database, *models) as user, user.socket() as socket:
        thread_id = await user.thread()
        events = await said(socket, thread_id, "hello")
        (completed,) = only("agent_completed", events)
        assert (completed["output"], completed["usage"]["model"]) == ("hi", "gpt-test")
        metrics = (await user.http.get("/metrics")).text
        assert 'nurseries_model_failures_total{model="busy"} 1.0' in metrics
        assert 'nurseries_model_answers_total{model="gpt-test"} 1.0' in metrics
        run = (await user.http.get(f"/v1/threads/{thread_id}/runs/{await last_run(user, thread_id)}")).json()
        assert list(run["usage"]["models"]) == ["gpt-test"]
    assert [body["model"] for body in await aimock.requests()] == ["busy", "broken", "gpt-test"]


async def last_run(user, thread_id):
    answer = await user.http.get(f"/v1/threads/{thread_id}/messages")
    return answer.json()["messages"][-1]["run_id"]


@KINDS
async def test_a_stream_that_is_cut(database, aimock, kind):
    """The run fails in words of ours; what was said is kept as a partial message, and nobody says it again."""
    await aimock.says("hello", "half of it, and more", latency=20, chunkSize=4, truncateAfterChunks=4)
    await aimock.says("hello", "never", model="second")
    models = [aimock.model(kind), aimock.model(kind, name="second")]
    async with a_user_of(database, *models) as user, user.socket() as socket:
        thread_id = await user.thread()
        events = await said(socket, thread_id, "hello")
        heard = "".join(payload["text"] for payload in only("message_delta", events))
        assert heard
        assert "half of it, and more".startswith(heard)
        (failed,) = only("run_failed", events)
        assert failed["code"] == "model_interrupted"
        assert failed["message"].startswith(f"The language model {MODELS[kind]} did not finish its answer")
        assert await messages(user, thread_id) == [("user", "hello"), ("assistant", heard)]
        run = (await user.http.get(f"/v1/threads/{thread_id}/runs/{await last_run(user, thread_id)}")).json()
        assert (run["status"], run["output"]) == ("failed", heard)
        assert list(run["usage"]["models"]) == [MODELS[kind]]
    with psycopg.connect(database.owner) as owner:
        kept = owner.execute("SELECT content, partial FROM messages WHERE role = 'assistant'").fetchall()
    assert kept == [(heard, True)]
    assert len(await aimock.requests()) == 1


async def test_no_model_answers(database, aimock):
    """The user learns that, and no key, no address and no word of the provider."""
    await aimock.refuses("hello", 401)
    async with (
        a_user_of(database, aimock.model("openai"), aimock.model("anthropic")) as user,
        user.socket() as socket,
    ):
        events = await said(socket, await user.thread(), "hello")
    (failed,) = only("run_failed", events)
    assert failed["code"] == "model_refused"
    for secret in (KEY, "127.0.0.1", "words of the provider"):
        assert secret not in json.dumps(events)


@KINDS
async def test_a_cancelled_run_hangs_up(database, aimock, kind):
    """The provider sees a closed connection, long before its answer is over, and the user keeps what was said."""
    await aimock.says("hello", "x" * 1000, latency=100, chunkSize=1)
    async with tapped(aimock.url) as tap, a_user_of(database, aimock.model(kind, url=tap.url)) as user:
        thread_id = await user.thread()
        async with user.socket() as socket:
            await socket.send(type="user_message", thread_id=thread_id, content="hello")
            frames = await socket.until("message_delta")
            await socket.send(type="cancel", run_id=frames[-1]["run_id"])
            await tap.hang_up_seen()
            assert (await socket.until(*ENDS))[-1]["type"] == "run_cancelled"
        (_, (_, kept)) = await messages(user, thread_id)
        assert set(kept) == {"x"}


async def test_a_socket_that_closes_hangs_up(database, aimock):
    """A run that belongs to its socket ends with it, and so does the provider's work."""
    await aimock.says("hello", "x" * 1000, latency=100, chunkSize=1)
    async with tapped(aimock.url) as tap, a_user_of(database, aimock.model("openai", url=tap.url)) as user:
        async with user.socket() as socket:
            thread_id = await user.thread()
            await socket.send(
                type="user_message", thread_id=thread_id, content="hello", on_disconnect="cancel"
            )
            await socket.until("message_delta")
        await tap.hang_up_seen()


@KINDS
async def test_users_do_not_meet_in_a_model(database, aimock, kind):
    """Two users talk at the same time, again and again, through one model: no request and no answer has both."""
    canaries = {"alice": "canary-alice-7", "bob": "canary-bob-9"}
    for canary in canaries.values():
        await aimock.says(canary, f"I know {canary}.", chunkSize=3, latency=2)
    heard = {}
    models = [aimock.model(kind)]
    async with (
        running_server(database.owner, models=models) as url,
        signed_up(url) as alice,
        signed_up(url) as bob,
        alice.socket() as at_alice,
        bob.socket() as at_bob,
    ):

        async def converse(name, user, socket):
            thread_id = await user.thread()
            frames = []
            for turn in range(4):
                frames += await said(socket, thread_id, f"{turn}: my secret is {canaries[name]}")
            heard[name] = json.dumps(frames)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(converse, "alice", alice, at_alice)
            nursery.start_soon(converse, "bob", bob, at_bob)
    for name, other in (("alice", "bob"), ("bob", "alice")):
        assert f"I know {canaries[name]}." in heard[name]
        assert canaries[other] not in heard[name]
    bodies = [json.dumps(body) for body in await aimock.requests()]
    assert len(bodies) == 8
    assert all((canaries["alice"] in body) is not (canaries["bob"] in body) for body in bodies)
    assert [sum(body.count(canary) for body in bodies) for canary in canaries.values()] == [16, 16]


@pytest.mark.parametrize("moment", ["before the first piece", "between pieces"])
@KINDS
async def test_users_share_nothing_through_a_model(database, aimock, kind, moment):
    """While both wait for it, the audit finds nothing that one could reach from the other, not even in the SDK."""
    latency = 3_600_000 if moment == "before the first piece" else 200
    await aimock.says("hello", "x" * 1000, latency=latency, chunkSize=1)
    async with (
        tapped(aimock.url) as tap,
        running_server(database.owner, models=[aimock.model(kind, url=tap.url)]) as url,
        signed_up(url) as alice,
        signed_up(url) as bob,
        alice.socket() as at_alice,
        bob.socket() as at_bob,
    ):
        promote(database, alice)
        for user, socket in ((alice, at_alice), (bob, at_bob)):
            frame = {"content": "hello", "on_disconnect": "cancel"}
            await socket.send(type="user_message", thread_id=await user.thread(), **frame)
            await socket.until("agent_started" if moment == "before the first piece" else "message_delta")
        with trio.fail_after(30):
            while tap.heard.count(b"POST /") < 2:
                await trio.testing.wait_all_tasks_blocked(0.01)
        report = (await alice.http.get("/v1/admin/isolation")).json()
        assert (report["findings"], report["users"], report["truncated"]) == ([], 2, None)
