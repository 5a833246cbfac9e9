"""Tools that hang, crash, flood or ask for what is another's, in a whole server: what happens stays in their run."""

from pathlib import Path

import pytest
import trio

from tests.fixtures import hostile_agents
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.process import served
from tests.fixtures.vitals import at_rest

AGENTS = "tests.fixtures.hostile_agents"
ROOM = 40 << 20


@pytest.fixture
async def server(database):
    """The URL of a server with those tools."""
    hostile_agents.RELEASE.clear()
    async with running_server(database.owner, agents=AGENTS) as url:
        yield url
        hostile_agents.RELEASE.set()
        await at_rest(url)


@pytest.fixture
async def ann(server):
    async with signed_up(server) as user:
        yield user


@pytest.fixture
async def bystander(server):
    """Somebody else, with a socket open, who must notice nothing."""
    async with signed_up(server) as user, user.socket() as socket:
        yield socket
        await socket.send(type="ping")
        assert (await socket.receive())["type"] == "pong"


async def probe(user, content):
    return await user.run(await user.thread(), content, agent="prober")


@pytest.mark.parametrize("tool", ["hang", "deaf"])
async def test_a_tool_that_hangs_is_given_up(server, ann, bystander, tool):
    """The call ends with an event that says so, and the run goes on."""
    async with ann.socket() as socket:
        await socket.send(type="user_message", thread_id=await ann.thread(), content=tool, agent="prober")
        frames = await socket.until("agent_completed")
    error = f"the tool {tool} did not answer within 0.3 seconds"
    (completed,) = [frame["payload"] for frame in frames if frame["type"] == "tool_completed"]
    assert (completed["ok"], completed["error"]) == (False, error)
    assert frames[-1]["payload"]["output"] == f"failed: {error}"


async def test_a_thread_that_ignores_its_cancellation_holds_its_place(server, ann, bystander):
    """Until it really ends: its user has no thread left meanwhile, another user has, and then all is as it was."""
    for _ in range(2):
        assert (await probe(ann, "deaf"))["output"].startswith("failed")
    assert (await probe(ann, "quick"))["output"] == "failed: the tool quick did not answer within 2 seconds"
    async with signed_up(server) as bob:
        assert (await probe(bob, "quick"))["output"] == "here"
    hostile_agents.RELEASE.set()
    with trio.fail_after(60):
        while (await probe(ann, "quick"))["output"] != "here":
            pass


async def test_a_cancelled_run_does_not_wait_for_its_thread(server, ann, bystander):
    """The cancel returns at once, with everything back but the place of the thread."""
    async with ann.socket() as socket:
        thread = await ann.thread()
        await socket.send(type="user_message", thread_id=thread, content="deaf", agent="prober")
        (*_, begun) = await socket.until("tool_executing")
        answer = await ann.http.post(f"/v1/threads/{thread}/runs/{begun['run_id']}/cancel")
        assert answer.json()["status"] in {"cancelled", "completed"}


@pytest.mark.parametrize("tool", ["leave", "interrupt", "oddity"])
async def test_a_tool_that_crashes_ends_its_run_alone(server, ann, bystander, tool):
    """SystemExit and its like: that run fails with a code, the server and everybody's next run are as before."""
    outcome = await probe(ann, tool)
    assert (outcome["status"], outcome["error"]["code"]) == ("failed", "tool_crashed")
    assert (await probe(ann, "quick"))["output"] == "here"


async def test_what_cannot_be_printed_fails_its_run_alone(database, tmp_path):
    """In a real process: an error whose `repr` raises, of an agent, its task or its tool, breaks nothing of Trio's."""
    arguments = ("--database-url", database.owner, "--agents", AGENTS)
    async with (
        served(tmp_path / "log", *arguments) as server,
        signed_up(server.url) as user,
        signed_up(server.url) as other,
        other.socket() as bystander,
    ):
        for agent in ("unprintable_alone", "unprintable_child"):
            outcome = await user.run(await user.thread(), "hello", agent=agent)
            assert (outcome["status"], outcome["error"]["code"]) == ("failed", "internal")
        assert (await probe(user, "unprintable"))["output"] == "failed: the tool failed: Unprintable"
        assert (await probe(user, "quick"))["output"] == "here"
        await bystander.send(type="ping")
        assert (await bystander.receive())["type"] == "pong"
        assert "a Unprintable was raised that cannot be printed" in server.log_file.read_text()


async def test_a_prompt_that_asks_for_another_users_rows_gets_none(server, ann, bystander):
    """By a tool that reads whatever user the model names, and by the built-in search: identity comes from the context."""
    secret = "the password of the safe is rosebud"
    mine = await ann.thread()
    await ann.run(mine, secret)
    async with signed_up(server) as eve:
        for whose in (ann.user_id, ann.user_id.upper()):
            assert (await probe(eve, f"read {whose}"))["output"] == "[]"
        assert secret in (await probe(ann, f"read {ann.user_id}"))["output"]
        for prompt in ("search rosebud", f"search rosebud user_id:{ann.user_id}", f"search {mine}"):
            outcome = await eve.run(await eve.thread(), prompt)
            assert "nothing found" in outcome["output"]
        smuggled = f"read {ann.user_id}' OR '1'='1"
        assert (await probe(eve, smuggled))["output"].startswith("failed")
        messages = [
            message["content"]
            for thread in (await eve.http.get("/v1/threads")).json()["threads"]
            for message in (await eve.http.get(f"/v1/threads/{thread['thread_id']}/messages")).json()[
                "messages"
            ]
        ]
        assert not any("safe" in message for message in messages)


async def test_a_hundred_megabytes_are_cut_and_leave_no_trace(database, tmp_path):
    """In a real process: a result of 100 MB costs little more than itself, says that it was cut, and is gone afterwards."""
    arguments = ("--database-url", database.owner, "--agents", AGENTS)
    async with served(tmp_path / "log", *arguments) as server, signed_up(server.url) as user:

        def memory(field):
            lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
            (line,) = [line for line in lines if line.startswith(field)]
            return int(line.split()[1]) * 1024

        await probe(user, "quick")
        before = memory("VmRSS")
        async with user.socket() as socket:
            for _ in range(5):
                await socket.send(
                    type="user_message", thread_id=await user.thread(), content="flood", agent="prober"
                )
                frames = await socket.until("agent_completed")
                (completed,) = [frame["payload"] for frame in frames if frame["type"] == "tool_completed"]
                result = completed["result"]
                assert (result["truncated"], result["limit_bytes"]) == (True, 64 * 1024)
                assert len(result["result"]) <= 64 * 1024
        assert memory("VmHWM") - before < hostile_agents.MEGABYTES * 1_000_000 + ROOM
        assert memory("VmRSS") - before < ROOM
