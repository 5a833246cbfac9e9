"""The embedded PostgreSQL is killed under a server that serves: it comes back by itself, and nothing is lost."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio

from tests.fixtures.house import signed_up
from tests.fixtures.process import Server, postgres_of, served
from tests.fixtures.sse import watched
from tests.fixtures.vitals import at_rest

TALK = {"content": '{"events":4000,"queries":0,"delta_bytes":200}', "agent": "load"}


def postmaster(data_dir: Path) -> int:
    """Return the process id of the PostgreSQL that serves, as it says itself."""
    return int((data_dir / "postgres" / "cluster" / "postmaster.pid").read_text().splitlines()[0])


async def replaced(data_dir: Path, killed: int) -> None:
    """Wait until another PostgreSQL serves."""
    with trio.fail_after(60):
        while True:
            with suppress(FileNotFoundError, IndexError, ValueError):  # it is being written
                if postmaster(data_dir) != killed:
                    return
            await trio.lowlevel.checkpoint()


async def ready(http: httpx.AsyncClient) -> None:
    """Ask until the server says that it is."""
    with trio.fail_after(60):
        while (await http.get("/health/ready")).status_code != 200:
            pass


@pytest.fixture
async def server(data_dir, tmp_path):
    """A server with its own PostgreSQL."""
    async with served(tmp_path / "log", "--data-dir", str(data_dir), "--load-agent") as server:
        yield server


async def test_a_killed_database_comes_back_under_its_server(server: Server, data_dir):
    """A socket that stays, a run that goes on with every number once, and all messages."""
    async with signed_up(server.url) as user, user.socket() as bystander:
        thread = await user.thread()
        assert (await user.run(thread, "calculate 6*7"))["status"] == "completed"
        await bystander.until("agent_completed")
        before = (await user.http.get(f"/v1/threads/{thread}/messages")).json()
        talk = await user.thread()
        async with watched(user, f"/v1/threads/{talk}/runs", TALK) as stream:
            first = await stream.until("message_delta")
            killed = postmaster(data_dir)
            os.kill(killed, signal.SIGKILL)
            records = first + await stream.rest()
        assert records[-1].type == "agent_completed"
        assert [record.id for record in records] == list(range(1, 4004))
        await replaced(data_dir, killed)
        await ready(user.http)
        await bystander.send(type="ping")
        assert [frame["type"] for frame in await bystander.until("pong")][-1] == "pong"
        assert (await user.http.get(f"/v1/threads/{thread}/messages")).json() == before
        assert (await user.run(thread, "calculate 7*6"))["status"] == "completed"
    await at_rest(server.url)
    server.signal(signal.SIGTERM)
    assert await server.ended() == 0
    assert postgres_of(data_dir) == []
    assert "PostgreSQL ended with status" in server.log_file.read_text()
