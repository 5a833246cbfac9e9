"""How a server ends, by signals and by being killed, and what it is like to be its client then."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import psycopg
import pytest
import trio
import trio_websocket
from psycopg.conninfo import conninfo_to_dict

from app.tenancy import LOCK_KEY
from nurseries.groups import leaves
from nurseries.process import wait_ended
from tests.fixtures.house import Socket, User, open_socket, signed_up
from tests.fixtures.process import COMMAND, Server, environment, postgres_gone, postgres_of, served

SLEEPING = '{"sleep_ms": 60000, "events": 1, "queries": 0}'
WAITING = {"content": '{"events": 1, "queries": 0}', "agent": "load"}
GATED_AGENT = """
import os
import trio
from app.agents import Agent, Answer

class Gated(Agent):
    name = "gated"
    description = "Answers when a byte can be read from the gate."

    async def run(self, request):
        await request.say("waiting")
        gate = os.open(os.environ["GATE"], os.O_RDWR | os.O_NONBLOCK)
        try:
            await trio.lowlevel.wait_readable(gate)
        finally:
            os.close(gate)
        await request.say(" is over")
        return Answer(request.said())

class Deaf(Agent):
    name = "deaf"
    description = "Takes a cancellation for something to go on after."

    async def run(self, request):
        await request.say("waiting")
        while True:
            try:
                await trio.sleep(1)
            except trio.Cancelled:
                pass
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Where the agent `gated` of the module `gated_agents`, in the same directory, waits."""
    (tmp_path / "gated_agents.py").write_text(GATED_AGENT)
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def open_gate(gate: Path) -> None:
    descriptor = os.open(gate, os.O_RDWR | os.O_NONBLOCK)
    os.write(descriptor, b"x" * 64)


@pytest.fixture
async def server(database, gate, request) -> AsyncIterator[Server]:
    """A server on this test's own database; a parameter is its `drain_seconds`."""
    variables = {"GATE": str(gate), "NURSERIES_DRAIN_SECONDS": str(getattr(request, "param", 60))}
    arguments = ("--database-url", database.owner, "--agents", "gated_agents")
    async with served(gate.with_name("log"), *arguments, cwd=gate.parent, variables=variables) as server:
        yield server


async def start_gated(user: User, socket: Socket) -> str:
    """Start a run that waits at the gate; returns its thread."""
    thread = await user.thread()
    await socket.send(type="user_message", thread_id=thread, content="hello", agent="gated")
    await socket.until("message_delta")
    return thread


async def draining(user: User) -> dict:
    """Ask for readiness until it is gone, and return what is said then."""
    with trio.fail_after(30):
        while (answer := await user.http.get("/health/ready")).status_code == 200:
            pass
    return answer.json()


async def refusal(user: User) -> int | None:
    """Try to open a socket, and return the status of the refusal."""
    status = None
    try:
        async with user.socket():
            pass
    except* trio_websocket.ConnectionRejected as group:
        (rejected,) = leaves(group)
        status = rejected.status_code
    return status


def endings(owner: str) -> list[tuple[str, dict]]:
    """Return the last events of all runs in the log."""
    with psycopg.connect(owner) as connection:
        rows = connection.execute(
            "SELECT r.status, array_agg(m.content ORDER BY m.position) FROM runs r LEFT JOIN messages m"
            " ON m.run_id = r.run_id AND m.role = 'assistant' GROUP BY r.run_id, r.status"
        )
        return rows.fetchall()


# -- SIGTERM -----------------------------------------------------------------------------------------


async def test_drain(server, gate):
    """Runs end in peace: meanwhile no new work is taken, and afterwards sockets close with 1012."""
    async with signed_up(server.url) as user, user.socket() as socket:
        thread = await start_gated(user, socket)
        body = {"content": "hello", "agent": "gated"}
        waited: list[httpx.Response] = []

        async def wait_for_run(other: str) -> None:
            waited.append(await user.http.post(f"/v1/threads/{other}/runs?wait=true", json=body, timeout=60))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_run, await user.thread())
            await socket.until("message_delta")  # that run has begun, too
            server.signal(signal.SIGTERM)

            assert (await draining(user))["reasons"] == ["draining"]
            await socket.send(type="user_message", thread_id=thread, content="more")
            refused = await socket.receive()
            assert (refused["type"], refused["code"]) == ("error", "draining")
            answer = await user.http.post(f"/v1/threads/{thread}/runs", json={"content": "more"})
            assert (answer.status_code, answer.json()["code"]) == (503, "draining")
            assert "retry-after" in answer.headers
            assert await refusal(user) == 503
            assert (await user.http.get(f"/v1/threads/{thread}")).status_code == 200

            open_gate(gate)
            frames = [await socket.until("agent_completed"), await socket.until("agent_completed")]
            assert [each[-1]["payload"]["output"] for each in frames] == ["waiting is over"] * 2
            assert await socket.close_code() == 1012
        assert (waited[0].status_code, waited[0].json()["output"]) == (200, "waiting is over")
    assert await server.ended() == 0
    assert "connections were cut in the middle of an answer" not in [line["event"] for line in server.log()]


@pytest.mark.parametrize("server", [0.1], indirect=True)
async def test_drain_too_long(server, database):
    """What does not end in the time it is given is cancelled, and the log says why."""
    async with signed_up(server.url) as user, user.socket() as socket:
        await start_gated(user, socket)
        server.signal(signal.SIGTERM)
        cancelled = (await socket.until("run_cancelled"))[-1]
        assert cancelled["payload"] == {"reason": "shutdown"}
        assert await socket.close_code() == 1012
    assert await server.ended() == 0
    assert endings(database.owner) == [("cancelled", ["waiting"])]


async def test_idle_connections(server):
    """Neither an idle connection nor an endless stream holds up the end: both are closed, none is cut."""
    async with signed_up(server.url) as user, AsyncExitStack() as stack:
        host, _, port = server.url.removeprefix("http://").partition(":")
        idle = await stack.enter_async_context(await trio.open_tcp_stream(host, int(port)))
        await idle.send_all(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await idle.receive_some()).startswith(b"HTTP/1.1 200")
        path = f"/v1/threads/{await user.thread()}/events"
        stream = await stack.enter_async_context(user.http.stream("GET", path, timeout=60))
        server.signal(signal.SIGTERM)
        assert (await stream.aread()) == b""  # raises if it was cut off
        with trio.fail_after(30):
            while await idle.receive_some():
                pass
    assert await server.ended() == 0
    assert "connections were cut in the middle of an answer" not in [line["event"] for line in server.log()]


async def test_second_signal(server, database):
    """A second signal waits for nothing, yet what was cancelled is in the log with its reason."""
    async with signed_up(server.url) as user, user.socket() as socket:
        await start_gated(user, socket)
        server.signal(signal.SIGINT)
        await draining(user)
        server.signal(signal.SIGTERM)
        assert await socket.close_code() == 1012
        assert await server.ended() == 130
    assert endings(database.owner) == [("cancelled", ["waiting"])]


async def test_second_signal_ends_the_embedded_database(data_dir, gate):
    """No PostgreSQL is left after a second signal."""
    variables = {"GATE": str(gate)}
    arguments = ("--data-dir", str(data_dir), "--agents", "gated_agents")
    log_file = gate.with_name("log")
    async with (
        served(log_file, *arguments, cwd=gate.parent, variables=variables) as server,
        signed_up(server.url) as user,
        user.socket() as socket,
    ):
        await start_gated(user, socket)
        server.signal(signal.SIGTERM)
        await draining(user)
        assert postgres_of(data_dir)
        server.signal(signal.SIGTERM)
        assert await socket.close_code() == 1012
        assert await server.ended() == 130
    assert postgres_of(data_dir) == []


async def test_an_agent_that_cannot_be_ended(data_dir, gate):
    """It holds up the end for a bounded time, alone; what it left is what a killed server leaves."""
    arguments = ("--data-dir", str(data_dir), "--agents", "gated_agents")
    variables = {"GATE": str(gate), "NURSERIES_DRAIN_SECONDS": "0"}
    log_file = gate.with_name("log")
    async with (
        served(log_file, *arguments, cwd=gate.parent, variables=variables) as server,
        signed_up(server.url) as user,
        signed_up(server.url) as other,
        user.socket() as socket,
        other.socket() as bystander,
    ):
        thread = await user.thread()
        await socket.send(type="user_message", thread_id=thread, content="hello", agent="deaf")
        run_id = (await socket.until("message_delta"))[-1]["run_id"]
        server.signal(signal.SIGTERM)
        assert await bystander.close_code() == 1012
        assert await server.ended() == 1
        assert (server.log()[-1]["level"], server.log()[-1]["requests"]) == ("critical", [f"run {run_id}"])
    await postgres_gone(data_dir)
    async with served(log_file, *arguments, cwd=gate.parent, variables=variables) as server:
        headers = {"Authorization": f"Bearer {user.access_token}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
            run = (await http.get(f"/v1/threads/{thread}/runs/{run_id}")).json()
        assert run["status"] == "interrupted"


async def test_signal_before_ready(database, tmp_path):
    """A server that waits for its database's lock does not wait for it after a signal."""
    with psycopg.connect(database.owner, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
        arguments = [*COMMAND, "serve", "--port", "0", "--database-url", database.owner]
        with (
            (tmp_path / "log").open("wb") as log,
            subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log, env=environment()) as process,
        ):
            try:
                waiting = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%%pg_try_advisory_lock%%' AND usename = %s"
                role = conninfo_to_dict(database.journal)["user"]
                with trio.fail_after(30):
                    while not other.execute(waiting, [role]).fetchall():
                        await trio.lowlevel.checkpoint()
                process.send_signal(signal.SIGTERM)
                with trio.fail_after(30):
                    await wait_ended(process.pid)
                assert (process.wait(), process.stdout.read()) == (130, b"")
            finally:
                process.kill()
        assert (tmp_path / "log").read_text() == ""


# -- SIGKILL -----------------------------------------------------------------------------------------


async def test_kill(data_dir, tmp_path):
    """A killed server leaves no database running, and loses no message; what ran ends as interrupted, what waited runs."""
    arguments = ("--data-dir", str(data_dir), "--load-agent")
    async with AsyncExitStack() as stack:
        variables = {"NURSERIES_RUNS_RUNNING_PER_USER": "21"}
        server = await stack.enter_async_context(served(tmp_path / "log", *arguments, variables=variables))
        user = await stack.enter_async_context(signed_up(server.url))
        seen: dict[str, list[dict]] = {}
        async with user.socket() as socket:
            for number in range(20):
                thread = await user.thread()
                seen[thread] = []
                await socket.send(type="user_message", thread_id=thread, content=SLEEPING, agent="load")
                if number < 5:  # these have one waiting behind the one that runs
                    await socket.send(type="user_message", thread_id=thread, client_id=thread, **WAITING)
            finished = await user.thread()
            seen[finished] = []
            await socket.send(type="user_message", thread_id=finished, content="calculate 6*7")
            accepted, completed, running = 0, False, 0
            while not (completed and accepted == 26 and running == 21):
                frame = await socket.receive()
                accepted += frame["type"] == "accepted"
                running += frame["type"] == "agent_started"
                completed = completed or frame["type"] == "agent_completed"
                if "seq" in frame:
                    seen[frame["thread_id"]].append(frame)
            server.process.kill()
            await server.ended()
        await postgres_gone(data_dir)

        server = await stack.enter_async_context(served(tmp_path / "again", *arguments))
        headers = [("Authorization", f"Bearer {user.access_token}")]
        async with httpx.AsyncClient(base_url=server.url, headers=dict(headers)) as http:
            for thread in list(seen)[
                :5
            ]:  # the same message again: it is known, and its run can be waited for
                answer = await http.post(
                    f"/v1/threads/{thread}/runs?wait=true",
                    json=WAITING,
                    headers={"Idempotency-Key": thread},
                    timeout=60,
                )
                assert answer.json()["status"] == "completed", answer.text
            async with open_socket(server.url, headers) as socket:
                await socket.until("connection_established")
                for thread, frames in seen.items():
                    frames.extend(await rest(socket, thread, frames[-1]["seq"] if frames else 0))
            for thread, frames in seen.items():
                assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
                messages = (await http.get(f"/v1/threads/{thread}/messages")).json()["messages"]
                asked = {
                    frame["run_id"]: frame["payload"]["content"]
                    for frame in frames
                    if frame["type"] == "run_queued"
                }
                said = {
                    message["run_id"]: message["content"] for message in messages if message["role"] == "user"
                }
                assert said.keys() >= asked.keys()
                for run_id, content in said.items():
                    types = [frame["type"] for frame in frames if frame["run_id"] == run_id]
                    end = "run_interrupted" if content == SLEEPING else "agent_completed"
                    assert types[-1] == end
                    assert types.count(end) == 1
                    shown = (await http.get(f"/v1/threads/{thread}/runs/{run_id}")).json()
                    assert shown["status"] == ("interrupted" if content == SLEEPING else "completed")
            everything = sum(len({frame["run_id"] for frame in frames}) for frames in seen.values())
            assert everything == 26
        server.signal(signal.SIGTERM)
        assert await server.ended() == 0


async def rest(socket: Socket, thread: str, after: int) -> list[dict]:
    """Resume a thread and return the events up to the end of its log."""
    await socket.send(type="subscribe", thread_id=thread, after=after)
    subscribed = (await socket.until("subscribed"))[-1]
    assert subscribed["recovered"] is True
    return [await socket.receive() for _ in range(subscribed["last_seq"] - after)]
