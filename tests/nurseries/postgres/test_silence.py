"""A server that hangs: it takes what is sent, says nothing, and does not hang up either."""

import os
import signal
from contextlib import contextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nurseries.errors import OutcomeUnknown
from nurseries.postgres.failures import ConnectionLost, DatabaseSilent
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import ScopedDatabase, Statement

ANSWER_SECONDS = 7
INSERT = "INSERT INTO notes (text) VALUES ($1)"
WHO = "SELECT pg_backend_pid()"


@pytest.fixture
async def pool(notes):
    """Connections that are given up after a while without an answer."""
    limits = PoolLimits(size=2, overflow=0, ready=0, answer_seconds=ANSWER_SECONDS)
    async with open_pool(notes.conninfo, limits) as pool:
        yield pool
        assert pool.statistics().checked_out == 0


@pytest.fixture
def ann(pool):
    return ScopedDatabase(pool, "ann")


@contextmanager
def stopped(pid):
    """Stop a process for the body of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def texts(notes):
    return [text for (text,) in notes.outside("SELECT text FROM notes")]


async def wait_gone(notes, pid):
    while pid in dict(notes.sessions()):
        await trio.lowlevel.checkpoint()


async def outcome_of(unit, ann, pool, clock, *, seconds):
    """Have the next connection's server hang under `unit`, and return what kind of error the unit raised.

    The unit waits for that long and no longer; then another connection serves, though the server still hangs.
    """
    ((pid,),) = await ann.fetch(WHO)
    raised = []

    async def run():
        with pytest.raises(Exception, match=f"the database did not answer in {seconds} seconds") as caught:
            await unit()
        raised.append(caught.type)

    async with trio.open_nursery() as nursery:
        with stopped(pid):  # inside: a unit that goes on waiting is answered in the end
            nursery.start_soon(run)
            await wait_all_tasks_blocked()
            clock.jump(seconds - 0.5)
            await wait_all_tasks_blocked()
            assert (raised, pool.statistics().checked_out) == ([], 1)
            clock.jump(0.5)
            await wait_all_tasks_blocked()
            assert len(raised) == 1, "it does not ask again"
            statistics = pool.statistics()
            assert (statistics.checked_out, statistics.checked_in, statistics.invalidated) == (0, 0, 1)
            assert await ann.fetch(WHO) != [(pid,)]
    return raised[0]


@pytest.mark.parametrize("statements", [1, 3])
async def test_a_question_that_is_not_answered_is_given_up(ann, pool, mock_clock, statements):
    """After the time of its statements, at once, and without asking again, which might take as long once more."""

    async def unit():
        await ann.batch([Statement("SELECT 1")] * statements)

    seconds = statements * ANSWER_SECONDS
    kind = await outcome_of(unit, ann, pool, mock_clock, seconds=seconds)
    assert kind is DatabaseSilent


async def test_a_write_that_is_not_answered_may_happen_yet(ann, pool, notes, mock_clock):
    """Its outcome is unknown, and rightly so: a server that wakes up reads what it was sent, and commits it."""

    async def unit():
        await ann.execute(INSERT, "late")

    kind = await outcome_of(unit, ann, pool, mock_clock, seconds=ANSWER_SECONDS)
    assert kind is OutcomeUnknown
    while texts(notes) != ["late"]:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_transaction_that_is_not_answered_is_lost(ann, pool, notes, mock_clock, goes_on):
    """COMMIT was never sent, so a server that wakes up rolls it back; a body that hides the error commits nothing."""
    raised, pids = [], []

    async def unit():
        with pytest.raises(ConnectionLost) as caught:
            async with ann.transaction() as tx:
                await tx.execute(INSERT, "never")
                pids.extend(await tx.fetch(WHO))
                await hung.wait()
                try:
                    await tx.fetch("SELECT 1")
                except DatabaseSilent:
                    if not goes_on:
                        raise
        raised.append(caught.type)

    hung = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unit)
        while not pids:
            await trio.lowlevel.checkpoint()
        ((pid,),) = pids
        with stopped(pid):
            hung.set()
            await wait_all_tasks_blocked()
            mock_clock.jump(ANSWER_SECONDS)
            await wait_all_tasks_blocked()
            assert raised == [ConnectionLost if goes_on else DatabaseSilent]
            assert (pool.statistics().checked_out, pool.statistics().invalidated) == (0, 1)
            assert await ann.fetch(WHO) != [(pid,)]
    await wait_gone(notes, pid)
    assert texts(notes) == []


async def test_a_cancellation_at_the_same_time_is_a_cancellation(ann, pool, mock_clock):
    """Whoever left is told nothing of it; the connection is closed when it has not come to rest in time."""
    ((pid,),) = await ann.fetch(WHO)
    async with trio.open_nursery() as nursery:
        with stopped(pid):
            nursery.start_soon(ann.fetch, "SELECT 1")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            mock_clock.jump(ANSWER_SECONDS)
            while pool.statistics().checked_out:
                await trio.lowlevel.cancel_shielded_checkpoint()
                mock_clock.jump(0.5)
    assert nursery.cancel_scope.cancelled_caught
    assert pool.statistics().invalidated == 1
