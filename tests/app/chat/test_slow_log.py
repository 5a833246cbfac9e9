"""A log that takes longer than a run waits for it: what is said to be over is over in the log."""

from contextlib import contextmanager

import psycopg
import pytest
import trio

from app.chat.calls import open_call
from nurseries.cleanup import cleanup_scope


@pytest.fixture
def hurried(monkeypatch):
    """Runs that hardly wait for their end to be written."""
    monkeypatch.setattr("app.chat.execution.cleanup_scope", lambda: cleanup_scope(0.01))


@pytest.fixture
def stopped(database):
    """Keeps everybody from writing events, for the body of a block."""

    @contextmanager
    def stop():
        with psycopg.connect(database.owner) as owner:
            owner.execute("LOCK TABLE events IN EXCLUSIVE MODE")
            yield

    return stop


async def let_go_when(condition, lock):
    """Hold the lock until the condition holds and everybody waits."""
    with lock:
        while not condition():
            await trio.testing.wait_all_tasks_blocked(0.01)
        await trio.testing.wait_all_tasks_blocked(0.05)


async def test_a_thread_is_removed_after_its_events(chat, hurried, stopped, nursery):
    """Else they would be refused, and with them all that others wrote at the same time."""
    user, other = chat.house.user(), chat.house.user()
    thread, others = chat.house.thread(user), chat.house.thread(other)
    run = (await chat.submit(user, thread, agent="patient")).run
    await chat.journal.settled(user, thread)
    nursery.start_soon(let_go_when, run.done.is_set, stopped())
    await trio.testing.wait_all_tasks_blocked()
    await chat.submit(other, others)
    async with open_call(chat.kernel, user) as call:
        assert await chat.runs.delete_thread(call, thread)
    await chat.runs.wait_idle()
    await chat.journal.settled(other, others)
    assert chat.journal.statistics().broken == 0
    assert chat.types(others)[-1] == "agent_completed"


async def test_a_cancelled_run_is_said_to_be_so_when_its_end_is_in_the_log(chat, hurried, stopped, nursery):
    """However long that takes."""
    user = chat.house.user()
    thread = chat.house.thread(user)
    run = (await chat.submit(user, thread, agent="patient")).run
    await chat.journal.settled(user, thread)
    nursery.start_soon(let_go_when, run.done.is_set, stopped())
    await trio.testing.wait_all_tasks_blocked()
    assert await chat.runs.cancel(user, run.run_id)
    assert chat.types(thread)[-1] == "run_cancelled"
    assert chat.status(run.run_id) == "cancelled"
