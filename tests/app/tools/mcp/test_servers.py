"""Calling MCP servers: what works, and what breaks without taking anything else along."""

import signal
import subprocess
import sys

import pytest
import trio

from app.tools.mcp.errors import McpToolFailed, McpUnavailable
from app.tools.mcp.settings import McpServer
from app.tools.mcp.toolbox import Toolbox
from nurseries.process import wait_ended
from tests.app.tools.mcp.conftest import SMALL, Vault, asks, request
from tests.fixtures.process import children


@pytest.fixture(params=["child", "remote"])
def server(request):
    """The reference server, both ways."""
    return request.getfixturevalue(request.param)


def toolbox(*servers, **tokens) -> Toolbox:
    return Toolbox(servers, Vault(**tokens))


def changed(server: McpServer, **fields) -> McpServer:
    import attrs

    return attrs.evolve(server, **fields)


async def test_its_tools_are_told_and_called(server):
    """A model is told names, descriptions and schemas; results come as text or as the structure they are."""
    async with request(toolbox(server)) as opened:
        told = opened.tools["every_get_sum"].describe()
        assert set(told.parameters["properties"]) == {"a", "b"}
        assert told.description
        assert await opened.call("every_get_sum", a=1, b=2) == "The sum of 1 and 2 is 3."
        structured = await opened.call("every_get_structured_content", location="New York")
        assert set(structured) == {"temperature", "conditions", "humidity"}
        assert "[image left out]" in await opened.call("every_get_tiny_image")


async def test_what_the_server_refuses_is_told_in_its_words(server):
    """A call with arguments that do not fit fails alone, and the model reads why."""
    async with request(toolbox(server)) as opened:
        with pytest.raises(McpToolFailed, match="expected number"):
            await opened.call("every_get_sum", a="one", b=2)
        assert await opened.call("every_echo", message="still here") == "Echo: still here"


async def test_only_the_tools_of_the_settings_are_offered(server):
    """`tools` picks, `approval` marks, and only read-only or idempotent ones may be called again after a crash."""
    picked = changed(server, tools=("echo", "get-sum"), approval=("get-sum",))
    async with request(toolbox(picked)) as opened:
        assert {name: tool.approval for name, tool in opened.tools.items()} == {
            "every_echo": False,
            "every_get_sum": True,
        }


async def test_an_agent_that_is_not_named_gets_nothing(child):
    """And no process is started for it."""
    async with toolbox(child).open(asks(), None, "load") as tools:
        assert tools == ()
    assert not children("server-everything")


async def test_a_hung_server_fails_that_call_alone(child):
    """The call ends at its limit; another request's own server answers meanwhile; the stopped process is gone."""
    box = toolbox(changed(child, call_seconds=3.0))
    async with request(box) as opened:
        await opened.call("every_echo", message="up")
        (process,) = children("server-everything")
        process.send_signal(signal.SIGSTOP)
        async with request(box) as other:
            assert await other.call("every_echo", message="mine") == "Echo: mine"
        with pytest.raises(McpUnavailable, match="did not answer within 3 seconds"):
            await opened.call("every_echo", message="anybody?")
    assert not children("server-everything")


async def test_a_hung_remote_server_fails_that_call_alone(remote, remote_program):
    """The call ends at its limit, and the next one is answered when the server is back."""
    async with request(toolbox(changed(remote, call_seconds=3.0))) as opened:
        await opened.call("every_echo", message="up")
        remote_program.signal(signal.SIGSTOP)
        with pytest.raises(McpUnavailable, match="did not answer within"):
            await opened.call("every_echo", message="anybody?")
        remote_program.signal(signal.SIGCONT)
        with trio.fail_after(30):
            while True:
                try:
                    assert await opened.call("every_echo", message="again") == "Echo: again"
                except McpUnavailable:
                    continue  # the connection that hung was given up
                break


async def test_a_crashed_child_fails_its_call_and_the_next_one_gets_a_new_child(child):
    """Nobody is told anything but that the server has ended; the request goes on."""
    async with request(toolbox(child)) as opened:
        await opened.call("every_echo", message="up")
        (process,) = children("server-everything")
        async with trio.open_nursery() as nursery:

            async def long_call():
                with pytest.raises(McpUnavailable, match="has ended"):
                    await opened.call("every_trigger_long_running_operation", duration=600, steps=1)

            nursery.start_soon(long_call)
            await trio.testing.wait_all_tasks_blocked(0.01)
            process.kill()
        assert await opened.call("every_echo", message="again") == "Echo: again"
        assert [each.pid for each in children("server-everything")] != [process.pid]


async def test_a_crashed_remote_server_fails_its_calls(remote, remote_program):
    """A lost connection and a refused one are both told as what they are."""
    async with request(toolbox(remote)) as opened:
        await opened.call("every_echo", message="up")
        remote_program.signal(signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(McpUnavailable, match=r"has ended|cannot be reached"):
                await opened.call("every_echo", message="anybody?")


async def test_a_cancelled_call_leaves_the_connection_usable(server):
    """Who cancels waits for nothing, and the next call is answered."""
    async with request(toolbox(server)) as opened:
        await opened.call("every_echo", message="up")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: opened.call("every_trigger_long_running_operation", duration=600, steps=1)
            )
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        assert await opened.call("every_echo", message="again") == "Echo: again"


async def test_a_remote_server_hears_that_its_client_goes(remote, remote_program):
    """Its session is ended, so that it keeps none for requests that are over; a cancelled one says so, too."""
    with trio.CancelScope() as scope:
        async with request(toolbox(remote)) as opened:
            await opened.call("every_echo", message="up")
            scope.cancel()
    await remote_program.hears("Received session termination request")


async def test_children_die_with_their_request(child):
    """Each request that calls has a child of its own; none is left when it ends, failed or not."""
    box = toolbox(child)
    async with request(box) as one, request(box, asks("bob")) as two:
        await one.call("every_echo", message="1")
        await two.call("every_echo", message="2")
        assert len(children("server-everything")) == 2
    assert not children("server-everything")
    with pytest.raises(ZeroDivisionError):
        async with request(box) as opened:
            await opened.call("every_echo", message="3")
            raise ZeroDivisionError
    assert not children("server-everything")


async def test_a_socket_has_one_child_for_all_its_requests(child):
    """With `scope = session` it is started by the first call and ends with the socket; others have their own."""
    box = toolbox(changed(child, scope="session"))
    async with box.session("socket-1"), box.session("socket-2"):
        for _ in range(2):
            async with request(box, asks("ann", "socket-1")) as opened:
                await opened.call("every_echo", message="1")
        (first,) = children("server-everything")
        async with request(box, asks("bob", "socket-2")) as opened:
            await opened.call("every_echo", message="2")
        assert {each.pid for each in children("server-everything")} > {first.pid}
        async with request(box, asks("ann")) as opened:  # asked over HTTP
            await opened.call("every_echo", message="3")
            assert len(children("server-everything")) == 3
        assert len(children("server-everything")) == 2
    assert not children("server-everything")


async def test_a_run_that_outlives_its_socket_gets_a_child_of_its_own(child):
    """The tools that it was given with the socket fail when the socket is gone; a new request's work."""
    box = toolbox(changed(child, scope="session"))
    async with box.session("socket-1"):
        pass
    async with request(box, asks("ann", "socket-1")) as opened:
        assert await opened.call("every_echo", message="1") == "Echo: 1"
    assert not children("server-everything")


async def test_a_message_beyond_the_limit_ends_the_connection_and_nothing_else():
    """What is too large is not collected; the next call gets a new connection."""
    small = McpServer(name="small", command=(sys.executable, str(SMALL)), message_bytes=100_000)
    async with request(toolbox(small)) as opened:
        with pytest.raises(McpUnavailable, match="larger than 100000 bytes"):
            await opened.call("small_letters", count=200_000)
        assert (await opened.call("small_letters", count=3))["result"] == "xxx"


async def test_connections_are_bounded(child, mock_clock):
    """One more than may be is told that there are too many, within its patience."""
    mock_clock.rate = 1.0
    box = toolbox(changed(child, connections=1))
    async with request(box) as one:
        await one.call("every_echo", message="1")
    async with request(box) as one, request(box) as two:
        await one.call("every_echo", message="1")

        async def one_more():
            with pytest.raises(McpUnavailable, match="too many connections"):
                await two.call("every_echo", message="2")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one_more)
            await trio.testing.wait_all_tasks_blocked(0.01)
            mock_clock.jump(child.start_seconds)


async def test_a_program_that_is_no_server_leaves_the_request_without_its_tools(nursery):
    """A program that says nothing of the kind, ends at once or does not answer costs its tools alone."""
    for code in ("print('hello')", "import sys; sys.exit(3)", "import time; time.sleep(600)"):
        broken = McpServer(name="broken", command=(sys.executable, "-c", code), start_seconds=1.0)
        async with request(toolbox(broken)) as opened:
            assert opened.tools == {}
        assert not children("time.sleep(600)")


KILLED = """
import sys, trio
from app.tools.mcp.settings import McpServer
from app.tools.mcp.toolbox import Toolbox
from nurseries.context import UserContext
import psutil

async def main():
    context = UserContext(user_id="ann", thread_id="t-1", run_id="r-1")
    box = Toolbox([McpServer(name="every", command=("node", sys.argv[1], "stdio"))], None)
    async with box.open(context, None, "assistant"):
        print(psutil.Process().children()[0].pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_children_die_with_the_server_however_it_ends(everything):
    """The kernel ends them where we cannot."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, everything], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as ours:
        pid = int(ours.stdout.readline())
        ours.kill()
    with trio.fail_after(30):
        await wait_ended(pid)


async def test_a_program_is_given_its_users_token_and_nothing_else_of_ours(child, monkeypatch):
    """The environment holds the token of the request's own user; who stored none has no tools."""
    monkeypatch.setenv("A_SECRET_OF_OURS", "hidden")
    box = toolbox(
        changed(child, credential="user", credential_variable="TOKEN"), ann="token-of-ann", bob="token-of-bob"
    )
    for user in ("ann", "bob"):
        async with request(box, asks(user)) as opened:
            environment = await opened.call("every_get_env")
            assert f"token-of-{user}" in environment
            assert "hidden" not in environment
    async with request(box, asks("eve")) as opened:
        assert opened.tools == {}
    assert box._listings == {}


async def test_a_remote_server_is_given_its_users_token(small_program):
    """At the same time, over connections of their own, without a cookie of anybody."""
    server = McpServer(name="small", url=small_program.url, credential="user")
    box = toolbox(server, ann="token-of-ann", bob="token-of-bob")
    async with request(box, asks("ann")) as ann, request(box, asks("bob")) as bob:
        for _ in range(3):
            assert (await ann.call("small_token"))["result"] == "Bearer token-of-ann|no cookie"
            assert (await bob.call("small_token"))["result"] == "Bearer token-of-bob|no cookie"
