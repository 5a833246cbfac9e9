"""MCP servers behind a whole server: whose process, whose token, and what a run sees of a server that breaks."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import psutil
import pytest
import trio

from app.tools.mcp.credentials import TokenVault
from app.tools.mcp.settings import McpServer
from nurseries.errors import StartupFailed
from tests.fixtures.house import running_server
from tests.fixtures.node import node_package
from tests.fixtures.process import children
from tests.fixtures.roles import promote
from tests.fixtures.sse import watched

TOKEN = "a-token-that-nobody-else-may-see"


@pytest.fixture(scope="session")
def everything() -> str:
    """The protocol's reference server."""
    return str(node_package("@modelcontextprotocol/server-everything", "2026.8.31") / "dist" / "index.js")


@pytest.fixture
async def server(database, everything) -> AsyncIterator[str]:
    """A server whose `caller` has the reference server three times: per request, per socket, and with a token."""

    def server(name, **fields):
        return McpServer(name=name, command=("node", everything, "stdio"), agents=("caller",), **fields)

    mcp = (
        server("every"),
        server("shared", scope="session"),
        server("own", credential="user", credential_variable="TOKEN", tools=("get-env",)),
        McpServer(name="broken", command=(sys.executable, "-c", "exit(1)"), agents=("caller",)),
    )
    async with running_server(database.owner, agents="tests.app.web.calling_agents", mcp=mcp) as url:
        yield url


def calls(*wanted) -> str:
    return json.dumps(wanted)


async def results(user, *wanted) -> list[dict]:
    """Have the caller call these tools, and return how each call ended."""
    outcome = await user.run(await user.thread(), calls(*wanted), agent="caller")
    assert outcome["status"] == "completed", outcome
    return [json.loads(line) for line in outcome["output"].splitlines()]


def servers() -> list[psutil.Process]:
    return children("server-everything")


async def test_a_run_calls_the_tools_and_leaves_no_process(alice):
    """Events tell each call; a broken server costs its own tools alone; when the run has ended its process has, too."""
    thread = await alice.thread()
    async with alice.socket() as socket:
        content = calls(
            ("every_get_sum", {"a": 2, "b": 40}), ("every_get_sum", {"a": "x"}), ("broken_any", {})
        )
        await socket.send(type="user_message", thread_id=thread, content=content, agent="caller")
        frames = await socket.until("agent_completed", "run_failed")
        assert len(servers()) == 1, "the socket's own, and none of the run's"
    completed = [frame["payload"] for frame in frames if frame["type"] == "tool_completed"]
    assert [each["ok"] for each in completed] == [True, False, False]
    assert completed[0]["result"] == "The sum of 2 and 40 is 42."
    assert "expected number" in completed[1]["error"]
    assert "there is no tool 'broken_any'" in completed[2]["error"]


async def test_a_sockets_process_ends_with_the_socket(alice, bob):
    """Runs that a socket asked for share one process; another socket has another one."""
    async with alice.socket() as first, bob.socket() as second:
        for socket, user in ((first, alice), (first, alice), (second, bob)):
            content = calls(("shared_echo", {"message": user.user_id}))
            thread = await user.thread()
            await socket.send(type="user_message", thread_id=thread, content=content, agent="caller")
            frames = await socket.until("agent_completed")
            assert f"Echo: {user.user_id}" in frames[-1]["payload"]["output"]
        assert len(servers()) == 2
    with trio.fail_after(30):
        while servers():  # the socket is closed here before it is there
            await trio.lowlevel.checkpoint()


async def test_a_token_reaches_its_users_requests_alone(alice, bob, database, capsys):
    """It is stored sealed, listed as being there, given to its user's processes, and gone when it is removed."""
    assert (await alice.http.put("/v1/mcp/own/token", json={"token": TOKEN})).status_code == 204
    stored = {each["name"]: each["has_token"] for each in (await alice.http.get("/v1/mcp")).json()["servers"]}
    assert stored == {"every": False, "shared": False, "own": True, "broken": False}
    others = (await bob.http.get("/v1/mcp")).json()["servers"]
    assert not any(each["has_token"] for each in others)

    (of_alice,) = await results(alice, ("own_get_env", {}))
    assert json.loads(of_alice["result"])["TOKEN"] == TOKEN
    (of_bob,) = await results(bob, ("own_get_env", {}))
    assert not of_bob["ok"]
    assert TOKEN not in json.dumps(of_bob)

    ((sealed,),) = await owned(database, "SELECT sealed FROM tool_credentials")
    assert TOKEN.encode() not in bytes(sealed)
    await owned(database, "UPDATE tool_credentials SET user_id = %s RETURNING 1", bob.user_id)
    (moved,) = await results(bob, ("own_get_env", {}))
    assert not moved["ok"], "a sealed token that was moved to another user must open for nobody"
    await owned(database, "UPDATE tool_credentials SET user_id = %s RETURNING 1", alice.user_id)

    assert (await alice.http.delete("/v1/mcp/own/token")).status_code == 204
    assert (await alice.http.delete("/v1/mcp/own/token")).status_code == 404
    (gone,) = await results(alice, ("own_get_env", {}))
    assert not gone["ok"]
    assert TOKEN not in capsys.readouterr().out


async def owned(database, statement, *values):
    import psycopg

    with psycopg.connect(database.owner, autocommit=True) as owner:
        return owner.execute(statement, values or None).fetchall()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/mcp/nobody/token", {"token": "x"}, 404),
        ("/v1/mcp/every/token", {"token": "x"}, 404),
        ("/v1/mcp/own/token", {"token": ""}, 422),
        ("/v1/mcp/own/token", {"token": "a b"}, 422),
        ("/v1/mcp/own/token", {"token": "a\nHost: evil"}, 422),
        ("/v1/mcp/own/token", {"token": "x" * 4097}, 422),
        ("/v1/mcp/own/token", {"token": "x", "user_id": "bob"}, 422),
    ],
)
async def test_a_token_that_cannot_be_stored_is_refused(alice, path, body, status):
    """Unknown servers, those that take none, and what does not fit into a header."""
    assert (await alice.http.put(path, json=body)).status_code == status


async def test_the_audit_finds_nothing_shared_between_users_with_open_connections(alice, bob, database):
    """Two users in the middle of calls to the same server hold nothing in common."""
    promote(database, alice)
    long = calls(("every_trigger_long_running_operation", {"duration": 600, "steps": 1}))
    async with AsyncExitStack() as stack:
        for user in (alice, bob):
            body = {"content": long, "agent": "caller", "on_disconnect": "cancel"}
            path = f"/v1/threads/{await user.thread()}/runs"
            stream = await stack.enter_async_context(watched(user, path, body))
            await stream.until("tool_executing")
        with trio.fail_after(60):
            while len(servers()) < 2:
                await trio.lowlevel.checkpoint()
        report = (await alice.http.get("/v1/admin/isolation")).json()
        assert report["findings"] == []
    with trio.fail_after(30):
        while servers():
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"command": ("no-such-program-anywhere",)}, "no-such-program-anywhere"),
        ({"url": "http://127.0.0.1:1/mcp", "agents": ("nobody",)}, "nobody"),
    ],
)
async def test_a_mistake_is_told_before_the_server_listens(database, fields, words):
    """A program or an agent that is not there is named with its server."""
    with pytest.RaisesGroup(
        pytest.RaisesExc(StartupFailed, match=f"mcp server tools: .*{words}"), flatten_subgroups=True
    ):
        async with running_server(database.owner, mcp=(McpServer(name="tools", **fields),)):
            pass


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"name": "Tools", "url": "http://a/mcp"}, "name"),
        ({"name": "tools"}, "command, url"),
        ({"name": "tools", "url": "http://a/mcp", "command": ("x",)}, "command, url"),
        ({"name": "tools", "url": "ftp://a"}, "url"),
        ({"name": "tools", "url": "https://me:secret@a/mcp"}, "url"),
        ({"name": "tools", "url": "http://a", "scope": "forever"}, "scope"),
        ({"name": "tools", "command": ("x",), "credential": "user"}, "credential_variable"),
        ({"name": "tools", "command": ("x",), "credential_variable": "T"}, "credential_variable"),
        ({"name": "tools", "command": ("x",), "environment": ("A B",)}, "environment"),
        ({"name": "tools", "url": "http://a", "call_seconds": 0}, "call_seconds"),
    ],
)
def test_settings_that_contradict_themselves_are_refused_by_name(fields, word):
    """The message names the field."""
    with pytest.raises(ValueError, match=word):
        McpServer(**fields)


def test_a_sealed_token_opens_with_its_own_key_alone():
    """Another server's key opens nothing."""
    from app.tools.mcp.credentials import KEY_BYTES

    one, other = TokenVault(bytes(KEY_BYTES)), TokenVault(bytes([1] * KEY_BYTES))
    sealed = one.seal("ann", "tools", "secret")
    assert one.unseal("ann", "tools", sealed) == "secret"
    assert [
        vault.unseal(user, server, sealed)
        for vault, user, server in ((other, "ann", "tools"), (one, "bob", "tools"), (one, "ann", "others"))
    ] == [None, None, None]
