"""docs/agents.md is true: its listings make up a module that a server offers, and its answers are what comes back."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio

from app.engine.engine import built_in_agents
from tests.fixtures.house import PASSWORD, User, signed_up
from tests.fixtures.process import Server, run, served

PAGE = Path(__file__).parent.parent.parent.parent / "docs" / "agents.md"


@attrs.frozen
class Block:
    """A listing of the page: the words behind its fence, and its text."""

    kind: str
    text: str


BLOCKS = [
    Block(*match) for match in re.findall(r"^```(\S.*)\n((?:.*\n)*?)```$", PAGE.read_text(), re.MULTILINE)
]
KINDS = {"python", "python mistakes", "python test", "sh", "text", "text mistakes"}


def texts(kind: str) -> list[str]:
    return [block.text for block in BLOCKS if block.kind == kind]


def exchanges() -> list[tuple[str, str, str]]:
    """Return the agent, the message and the answer of each exchange, in the order of the page."""
    found = re.findall(r"^> ([\w-]+): (.*)\n((?:(?!> ).*\n)*)", "".join(texts("text")), re.MULTILINE)
    return [(agent, message, answer.removesuffix("\n")) for agent, message, answer in found]


@pytest.fixture
def module(tmp_path) -> Path:
    """The directory with `my_agents.py`, as a reader would have written it."""
    (tmp_path / "my_agents.py").write_text("\n\n".join(texts("python")))
    return tmp_path


@pytest.fixture
async def server(database, module) -> AsyncIterator[Server]:
    """The server, started as the page says."""
    (command,) = [line for line in texts("sh") if "serve" in line]
    arguments = command.split()
    assert arguments[:2] == ["nurseries", "serve"]
    async with served(module / "log", *arguments[2:], "--database-url", database.owner, cwd=module) as server:
        yield server


def test_every_listing_is_of_a_kind_that_is_run():
    """A new kind of listing needs a test, and a page without listings would pass them all."""
    assert {block.kind for block in BLOCKS} == KINDS
    assert len(texts("python")) >= 10
    assert len(exchanges()) >= len(texts("text"))


async def test_the_answers_are_as_shown(server):
    """Each message of the page, by one user in one thread, in its order; the user says yes to whatever is asked."""
    async with signed_up(server.url) as user, user.socket() as socket, trio.open_nursery() as nursery:
        assert isinstance(user, User)

        @nursery.start_soon
        async def _():
            while True:
                frame = json.loads(await socket.connection.get_message())
                if frame["type"] == "approval_requested":
                    call_id = frame["payload"]["call_id"]
                    await socket.send(type="approve", run_id=frame["run_id"], call_id=call_id)

        thread = await user.thread()
        for agent, message, answer in exchanges():
            outcome = await user.run(thread, message, agent=agent)
            assert (agent, outcome["status"]) == (agent, "completed"), outcome
            assert (agent, outcome["output"]) == (agent, answer)
        offered = (await user.http.get("/v1/agents")).json()["agents"]
        nursery.cancel_scope.cancel()
    asked = {agent for agent, _, _ in exchanges()}
    built_in = {each["name"] for each in built_in_agents().describe()}
    assert {each["name"] for each in offered} - built_in == asked, "an agent of the page is never asked"


async def test_the_command_lines_work(server, tmp_path):
    """What the page has its reader type gives the answer that stands below it."""
    (command,) = [line for line in texts("sh") if "chat" in line]
    arguments = re.findall(r'"([^"]*)"|(\S+)', command)
    words = [quoted or plain for quoted, plain in arguments]
    link = words.index(
        "--signin"
    )  # which a server prints that has one user: here there are others, so one registers
    del words[link : link + 2]
    done = await run(
        *words[1:], "--url", server.url, "--email", "ann@example.org", "--register",
        NURSERIES_PASSWORD=PASSWORD, XDG_STATE_HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().rstrip("\n") == exchanges()[0][2]


async def test_the_mistakes_are_told_as_shown(tmp_path):
    """A server that does not start says what the page says, with the whole path of the file."""
    (listing,), (told,) = texts("python mistakes"), texts("text mistakes")
    (tmp_path / "my_mistakes.py").write_text(listing)
    done = await run("serve", "--agents", "my_mistakes", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().replace(f"{tmp_path}/", "") == told


def test_the_test_passes(module):
    """With the installed plugin, in a directory that knows nothing of ours."""
    (listing,) = texts("python test")
    (module / "test_my_agents.py").write_text(listing)
    (module / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_agents.py"]
    done = subprocess.run(command, cwd=module, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
