"""The installed plugin, in runs of pytest of their own."""

import re
import subprocess
import sys

import pytest

LEAN = """
import sys
import nurseries.testing.plugin, app.testing
heavy = {"trio", "psycopg", "attrs", "quart", "httpx"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture
def run_tests(tmp_path):
    """Run pytest on a file with this content, with no configuration but the file's; returns status and output."""

    def run(content, *options):
        (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
        (tmp_path / "test_it.py").write_text(content)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout

    return run


def test_loading_it_costs_next_to_nothing():
    """Whoever has nurseries installed and tests something else imports none of it."""
    subprocess.run([sys.executable, "-c", LEAN], check=True, timeout=60)


def test_a_failing_schedule_is_named_and_replayed(run_tests):
    """The seed stands in the output, and with `--schedule-seed` nothing but that schedule runs."""
    content = """
import trio

async def race():
    done = []
    async def work(name):
        await trio.lowlevel.checkpoint()
        done.append(name)
    async with trio.open_nursery() as nursery:
        for name in range(3):
            nursery.start_soon(work, name)
    assert done != [2, 1, 0]

def test_race(explore):
    explore(race, schedules=40)

def test_calm(explore):
    assert str(explore(race, schedules=1))
"""
    status, output = run_tests(content)
    assert status == 1
    seed = re.search(r"--schedule-seed=(\d+) replays exactly this one", output)[1]
    status, output = run_tests(content, f"--schedule-seed={seed}")
    assert status == 1
    assert f"under schedule {seed} of 1;" in output
    status, output = run_tests(content, "--schedule-seed=0")
    assert status == 0
    assert "test_it.py::test_race: 1 schedules" in output


def test_the_summary_has_the_number_of_points(run_tests):
    """A sweep that passes says how many points it had."""
    status, output = run_tests(
        """
import trio

async def test_sweep(cancel_everywhere):
    async def scenario():
        await trio.lowlevel.checkpoint()
    await cancel_everywhere(scenario)
""",
        "-q",
    )
    assert status == 0
    assert "test_it.py::test_sweep: cancelled at 3 points of 2 steps" in output


def test_the_ledger_fails_its_test(run_tests):
    """A test with a `lease_ledger` that leaves something out has failed, and not only its teardown."""
    status, output = run_tests(
        """
from nurseries.budgets import Budget, BudgetLimits

async def test_forgets(lease_ledger):
    await Budget(BudgetLimits(), name="desks").acquire("ann")

async def test_gives_back(lease_ledger):
    async with Budget(BudgetLimits(), name="desks").lease("ann"):
        pass

async def test_fails_by_itself(lease_ledger):
    await Budget(BudgetLimits(), name="desks").acquire("ann")
    raise LookupError("its own fault")
"""
    )
    assert status == 1
    assert "2 failed, 1 passed" in output
    assert "still out: 1 of 1" in output
    assert "its own fault" in output


def test_a_project_of_its_own_gets_a_server(run_tests, tmp_path):
    """Somebody's agents module, a server with it, and a user who talks to it: no conftest, two fixtures."""
    (tmp_path / "my_agents.py").write_text("""
from app.agents import Agent, Answer

class Parrot(Agent):
    name = "parrot"
    description = "Repeats."

    async def run(self, request):
        await request.say(request.content)
        return Answer(request.said())
""")
    status, output = run_tests("""
import pytest

@pytest.fixture
def nurseries_settings():
    return {"agents": "my_agents"}

async def test_parrot(nurseries_server, lease_ledger):
    async with nurseries_server.user() as ann, ann.socket() as socket:
        thread = await ann.thread()
        await socket.send(type="user_message", thread_id=thread, content="hello", agent="parrot")
        said = (await socket.until("agent_completed"))[-1]
        assert said["payload"]["output"] == "hello"
    assert {"ann"} != {entry.holder for entry in lease_ledger.entries}
""")
    assert status == 0, output
