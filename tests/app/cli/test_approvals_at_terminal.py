"""What a person at a terminal is asked, and what becomes of the answer."""

import psycopg
import pytest

from tests.app.cli.screen import at_terminal
from tests.fixtures.house import PASSWORD, running_server, signed_up


@pytest.fixture
async def server(database):
    async with running_server(database.owner, agents="tests.fixtures.working_agents") as url:
        yield url


@pytest.fixture
async def ann(server, monkeypatch, tmp_path):
    """Somebody, whose account is in the variables."""
    async with signed_up(server) as user:
        for name, value in {
            "XDG_STATE_HOME": str(tmp_path),
            "NURSERIES_EMAIL": user.email,
            "NURSERIES_PASSWORD": PASSWORD,
            "TERM": "dumb",
            "PYTHONWARNINGS": "error",
        }.items():
            monkeypatch.setenv(name, value)
        yield user


def paid(owner):
    with psycopg.connect(owner) as connection:
        rows = connection.execute("SELECT title FROM threads WHERE title LIKE 'paid %' ORDER BY title")
        return [title for (title,) in rows]


async def test_the_person_is_asked(server, ann, database):
    """One question after the other, until there is a yes or a no; then the answer comes, and the prompt."""
    async with at_terminal(server, "--new", "--agent", "shopper") as screen:
        await screen.until("you> ")
        screen.type("tea gold\n")
        for _ in range(2):
            question = await screen.until(r'allow pay {"item":"(tea|gold)"}\? y/n> ')
            if "gold" in question.rpartition("allow")[2]:
                screen.type("perhaps\n")
                await screen.until(r"allow .*gold.*y/n> ")
                screen.type("n\n")
            else:
                screen.type("y\n")
        shown = await screen.until("you> ")
        assert "done" in shown
        screen.type("\x04")
        assert await screen.status() == 0
    assert paid(database.owner) == ["paid tea"]


async def test_somebody_else_may_answer_first(server, ann, database):
    """Another device of the user decides: the question at the terminal is closed, and the run goes on."""
    async with at_terminal(server, "--new", "--agent", "shopper") as screen, ann.socket() as phone:
        await screen.until("you> ")
        screen.type("tea\n")
        (*_, asked) = await phone.until("approval_requested")
        await screen.until(r"y/n> ")
        await phone.send(type="approve", run_id=asked["run_id"], call_id=asked["payload"]["call_id"])
        await screen.until("done")
        await screen.until("you> ")
        screen.type("\x04")
        assert await screen.status() == 0
    assert paid(database.owner) == ["paid tea"]


async def test_ctrl_c_cancels_a_run_that_asks(server, ann, database):
    """The question goes with the run, and the next message is a message again."""
    async with at_terminal(server, "--new", "--agent", "shopper") as screen:
        await screen.until("you> ")
        screen.type("tea\n")
        await screen.until(r"y/n> ")
        screen.type("\x03")
        await screen.until("cancelled: requested")
        await screen.until("you> ")
        screen.type("gold\n")
        await screen.until(r'allow pay {"item":"gold"}\? y/n> ')
        screen.type("yes\n")
        await screen.until("done")
        screen.type("\x04")
        assert await screen.status() == 0
    assert paid(database.owner) == ["paid gold"]
