"""Runs over the death of a real server: those that can go on do so, with every call made and told once."""

import signal
from collections import Counter
from contextlib import AsyncExitStack, suppress

import psycopg
import pytest
import trio
import trio_websocket

from tests.fixtures.house import open_socket, signed_up
from tests.fixtures.process import served
from tests.fixtures.working_agents import CALLS, STEPS

AGENTS = "tests.fixtures.working_agents"
ENDS = {"agent_completed", "run_failed", "run_cancelled", "run_interrupted"}
ANSWER = "".join(f"step {step}, " for step in range(STEPS)) + "done"


@pytest.fixture
def arguments(database):
    return ("--database-url", database.owner, "--agents", AGENTS)


@pytest.fixture
def rows(database):
    """Give a function that asks the database."""
    with psycopg.connect(database.owner, autocommit=True) as connection:
        yield lambda sql, *params: connection.execute(sql, params).fetchall()


class Device:
    """A user's device that sees each event once, over any number of servers."""

    def __init__(self, user):
        self.user = user
        self.seen = {}

    @property
    def headers(self):
        return [("Authorization", f"Bearer {self.user.access_token}")]

    def take(self, frame):
        if "seq" in frame:
            seen = self.seen.setdefault(frame["thread_id"], [])
            if frame["seq"] > len(seen):
                assert frame["seq"] == len(seen) + 1
                seen.append(frame)

    async def catch_up(self, socket, thread):
        """Resume a thread at the last event that was seen, up to the end of its log."""
        seen = self.seen.setdefault(thread, [])
        await socket.send(type="subscribe", thread_id=thread, after=len(seen))
        while (frame := await socket.receive())["type"] != "subscribed" or frame["thread_id"] != thread:
            self.take(frame)
        assert frame["recovered"]
        while len(seen) < frame["last_seq"]:
            self.take(await socket.receive())

    def of(self, thread, *types):
        return [frame["payload"] for frame in self.seen.get(thread, []) if frame["type"] in types]

    def shown(self, thread):
        """Return the answer as a client shows it that follows the protocol."""
        text = ""
        for frame in self.seen[thread]:
            if frame["type"] == "message_delta":
                text += frame["payload"]["text"]
            elif frame["type"] == "run_resumed":
                text = frame["payload"]["output"]
        return text


async def test_fifty_runs_in_flight_at_a_kill(arguments, tmp_path, rows):
    """Of five users: 25 go on to the answer that they would have come to, 25 end as interrupted, each once."""
    # Each run takes two seconds and more, so that none is over when the last one begins.
    variables = {"NURSERIES_RUNS_RUNNING_PER_USER": "10", "WORKING_SECONDS": "0.5"}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(tmp_path / "log", *arguments, variables=variables))
        devices = [Device(await stack.enter_async_context(signed_up(server.url))) for _ in range(5)]
        agents, ready, completed, enough = {}, 0, 0, trio.Event()

        async def use(device):
            nonlocal ready, completed
            async with device.user.socket() as socket:
                for number in range(10):
                    thread = await device.user.thread()
                    agents[thread] = ("sturdy", "plain")[number % 2]
                    await socket.send(
                        type="user_message", thread_id=thread, content="work", agent=agents[thread]
                    )
                with suppress(trio_websocket.ConnectionClosed):  # by the kill
                    while True:
                        frame = await socket.receive()
                        device.take(frame)
                        ready += frame["type"] == "agent_started"
                        completed += frame["type"] == "tool_completed"
                        if ready == 50 and completed >= 100:
                            enough.set()

        async with trio.open_nursery() as users:
            for device in devices:
                users.start_soon(use, device)
            with trio.fail_after(50):
                await enough.wait()
            server.process.kill()
            await server.ended()
            users.cancel_scope.cancel()
        ((running,),) = rows("SELECT count(*) FROM runs WHERE status = 'running'")
        assert running > 25, "the test wants most of them in flight"
        before = dict(rows("SELECT title, count(*) FROM threads WHERE title LIKE 'call %%' GROUP BY title"))

        server = await stack.enter_async_context(served(tmp_path / "again", *arguments, variables=variables))
        for device in devices:
            async with open_socket(server.url, device.headers) as socket:
                for thread in device.seen:
                    await device.catch_up(socket, thread)
                while not all(device.of(thread, *ENDS) for thread in device.seen):
                    device.take(await socket.receive())
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
    marks = dict(rows("SELECT title, count(*) FROM threads WHERE title LIKE 'call %%' GROUP BY title"))
    endings = Counter()
    for device in devices:
        for thread in device.seen:
            endings[agents[thread], ended_well(device, thread, agents[thread], marks)] += 1
    assert endings.total() == 50
    assert endings["sturdy", "run_interrupted"] == 0
    assert endings["plain", "run_interrupted"] > 10
    # A call whose result was committed before the kill was made once; one that was cut off, at most twice.
    twice = {title for title, count in marks.items() if count > 1}
    assert twice <= before.keys()
    assert max(marks.values()) <= 2
    assert rows("SELECT count(*) FROM checkpoints") == [(0,)]
    said = rows("SELECT DISTINCT content, partial FROM messages WHERE role = 'assistant'")
    assert said == [(ANSWER, False)]


def ended_well(device, thread, agent, marks):
    """Check one run's story, and return how it ended."""
    types = [frame["type"] for frame in device.seen[thread]]
    assert sum(kind in ENDS for kind in types) == 1
    calls = [payload["call_id"] for payload in device.of(thread, "tool_completed")]
    assert len(calls) == len(set(calls)), "no call is completed twice"
    assert all(f"call {call}" in marks for call in calls)
    if agent == "sturdy" or types[-1] == "agent_completed":
        (completed,) = device.of(thread, "agent_completed")
        assert completed["output"] == device.shown(thread) == ANSWER
        assert len(calls) == STEPS * CALLS
    else:
        assert device.of(thread, "run_interrupted") == [{"reason": "the server was lost while it ran"}]
    return types[-1]


async def test_a_question_waits_through_a_kill_and_a_stop(arguments, tmp_path, rows):
    """Asked once; neither holds up the stop nor is forgotten by the kill; approved by HTTP, denied by socket."""
    variables = {"NURSERIES_DRAIN_SECONDS": "600"}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(tmp_path / "first", *arguments, variables=variables))
        device = Device(await stack.enter_async_context(signed_up(server.url)))
        thread = await device.user.thread()
        async with device.user.socket() as socket:
            await socket.send(type="user_message", thread_id=thread, content="tea gold", agent="shopper")
            while len(device.of(thread, "approval_requested")) < 2:
                device.take(await socket.receive())
            questions = {p["arguments"]["item"]: p for p in device.of(thread, "approval_requested")}
            assert questions.keys() == {"tea", "gold"}
            server.process.kill()
            await server.ended()

        server = await stack.enter_async_context(served(tmp_path / "second", *arguments, variables=variables))
        async with open_socket(server.url, device.headers) as socket:
            await device.catch_up(socket, thread)
            while not device.of(thread, "run_resumed"):
                device.take(await socket.receive())
            server.signal(signal.SIGTERM)
            assert await socket.close_code() == 1012
        assert await server.ended() == 0

        server = await stack.enter_async_context(served(tmp_path / "third", *arguments, variables=variables))
        device.user.http.base_url = server.url
        run_id = device.seen[thread][0]["run_id"]
        path = f"/v1/threads/{thread}/runs/{run_id}"
        pending = (await device.user.http.get(path)).json()["approvals"]
        assert {each["call_id"] for each in pending} == {each["call_id"] for each in questions.values()}
        answer = await device.user.http.post(
            f"{path}/approvals/{questions['tea']['call_id']}", json={"decision": "approve"}
        )
        assert (answer.status_code, answer.json()["decision"]) == (200, "approve")
        async with open_socket(server.url, device.headers) as socket:
            await device.catch_up(socket, thread)
            await socket.send(
                type="deny", run_id=run_id, call_id=questions["gold"]["call_id"], note="too dear"
            )
            while not device.of(thread, *ENDS):
                device.take(await socket.receive())
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0
    types = [frame["type"] for frame in device.seen[thread]]
    assert types.count("approval_requested") == types.count("approval_resolved") == 2
    assert types.count("run_resumed") == 2
    assert types.count("run_suspended") == 1
    assert [payload["output"] for payload in device.of(thread, "agent_completed")] == ["step 0, done"]
    assert {p["tool"]: p["ok"] for p in device.of(thread, "tool_completed") if p["ok"]} == {"pay": True}
    assert rows("SELECT title FROM threads WHERE title LIKE 'paid %%'") == [("paid tea",)]


async def test_a_stop_leaves_resumable_runs_to_the_next_start(arguments, tmp_path):
    """At the drain's deadline they are suspended, sockets close with 1012, the exit status is 0; then they go on."""
    variables = {"NURSERIES_DRAIN_SECONDS": "0.1", "WORKING_SECONDS": "3"}
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(tmp_path / "first", *arguments, variables=variables))
        device = Device(await stack.enter_async_context(signed_up(server.url)))
        thread, other, third = [await device.user.thread() for _ in range(3)]
        body, waited, streamed = {"content": "work", "agent": "sturdy"}, [], []

        async def wait_for_run():
            waited.append(await device.user.http.post(f"/v1/threads/{other}/runs?wait=true", json=body))

        async def stream_run():
            streamed.append(await events_of_run(device, third, body))

        async with device.user.socket() as socket, trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_run)
            nursery.start_soon(stream_run)
            await socket.send(type="user_message", thread_id=thread, content="work", agent="sturdy")
            begun = set()
            while begun != {thread, other, third}:
                frame = await socket.receive()
                device.take(frame)
                begun |= {frame["thread_id"]} if frame["type"] == "tool_executing" else set()
            server.signal(signal.SIGTERM)
            while not device.of(thread, "run_suspended"):
                device.take(await socket.receive())
            assert await socket.close_code() == 1012
        assert await server.ended() == 0
        assert device.of(thread, "run_suspended") == [{"reason": "shutdown"}]
        assert (waited[0].status_code, waited[0].json()["status"]) == (200, "running")
        assert streamed[0][-2:] == ["tool_executing", "run_suspended"]

        variables = {"WORKING_SECONDS": "0.05"}
        server = await stack.enter_async_context(served(tmp_path / "second", *arguments, variables=variables))
        async with open_socket(server.url, device.headers) as socket:
            for each in (thread, other):
                await device.catch_up(socket, each)
                while not device.of(each, *ENDS):
                    device.take(await socket.receive())
                assert device.shown(each) == device.of(each, "agent_completed")[0]["output"] == ANSWER
        device.user.http.base_url = server.url
        again = await events_of_run(device, third, body)  # from its first event on, through both its lives
        assert again[: len(streamed[0])] == streamed[0]
        assert (again[len(streamed[0])], again[-1]) == ("run_resumed", "agent_completed")


async def events_of_run(device, thread, body):
    """Ask for a run, once whatever happens, and return the types of its events as they stream."""
    headers = {"Accept": "text/event-stream", "Idempotency-Key": thread}
    async with device.user.http.stream(
        "POST", f"/v1/threads/{thread}/runs", json=body, headers=headers, timeout=60
    ) as answer:
        return [
            line.removeprefix("event: ") async for line in answer.aiter_lines() if line.startswith("event: ")
        ]
