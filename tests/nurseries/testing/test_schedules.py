"""Exploring schedules: faults are found, seeds replay them, nothing of it stays behind."""

import gc
import random
import socket

import pytest
import trio
from trio._core import _run as scheduler

from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import ScopedDatabase
from nurseries.testing import Deadlock, explore, replay


async def lost_update():
    """Two tasks that add one to what they read before a checkpoint that only one of them has."""
    count = 0

    async def add(pause):
        nonlocal count
        read = count
        if pause:
            await trio.lowlevel.checkpoint()
        count = read + 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, True)
        nursery.start_soon(add, False)
    assert count == 2, "an addition was lost"


async def crossed_locks():
    """Two tasks that take two locks in different order."""
    left, right = trio.Lock(), trio.Lock()

    async def take(first, second, pauses):
        for _ in range(pauses):
            await trio.lowlevel.checkpoint()
        async with first, second:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, left, right, 3)
        nursery.start_soon(take, right, left, random.randrange(8))


async def asleep():
    """Tasks that sleep for hours of which each drew its own."""
    order = []

    async def sleep(name):
        await trio.sleep(random.uniform(0, 3600))
        order.append(name)

    async with trio.open_nursery() as nursery:
        for name in range(8):
            nursery.start_soon(sleep, name)
    return order


def test_a_fault_that_some_schedules_have_is_found_and_replayed():
    """The seed in the note fails alone as it did among the others, with the same steps."""
    with pytest.raises(AssertionError, match="an addition was lost") as failure:
        explore(lost_update, schedules=50)
    [note] = failure.value.__notes__
    seed = int(note.rpartition("--schedule-seed=")[2].split()[0])
    for _ in range(2):
        with pytest.raises(AssertionError, match="an addition was lost"):
            explore(lost_update, seed=seed)


def test_the_same_seed_gives_the_same_steps():
    """Two explorations agree in every trace, and the traces differ among themselves."""
    first, second = explore(asleep, schedules=20), explore(asleep, schedules=20)
    assert first == second
    assert len(set(first.digests.values())) == 20
    assert replay(asleep, seed=3).steps == replay(asleep, seed=3).steps
    assert replay(asleep, seed=3).digest == first.digests[3]


def test_a_deadlock_is_reported_with_the_lines_where_tasks_wait():
    """A schedule in which nothing can go on ends, and its message names the line."""
    with pytest.raises(Deadlock) as failure:
        explore(crossed_locks, schedules=50)
    assert str(failure.value).count("async with first, second:") == 2
    assert "--schedule-seed=" in failure.value.__notes__[0]


def test_waiting_for_a_socket_or_a_thread_is_no_deadlock():
    """What comes from outside is waited for, however idle the loop is."""

    async def talk():
        ours, theirs = socket.socketpair()
        with trio.socket.from_stdlib_socket(ours) as ours, theirs:

            def answer():
                trio.from_thread.run(trio.sleep, 0)
                theirs.send(b"x")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, answer)
                assert await ours.recv(1) == b"x"

    replay(talk, seed=0)


def test_nothing_of_an_exploration_stays_behind():
    """Dice, collector and the scheduler's mode are as they were, also after a failure."""
    before = scheduler._r.getstate(), random.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    explore(asleep, schedules=2)
    with pytest.raises(AssertionError):
        explore(lost_update)
    assert before == (
        scheduler._r.getstate(),
        random.getstate(),
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING,
    )
    assert gc.isenabled()


def test_a_real_database_keeps_the_steps_the_same(notes):
    """Eight tasks that share three connections take the same steps for a seed, whatever the server's pace."""

    async def units():
        async with open_pool(notes.conninfo, PoolLimits(size=3, overflow=0, ready=0)) as pool:

            async def work(name):
                database = ScopedDatabase(pool, name)
                async with database.transaction() as transaction:
                    await transaction.execute("INSERT INTO notes (text) VALUES ($1)", name)
                    await transaction.fetch("SELECT repeat('x', 100000)")
                assert {row[0] for row in await database.fetch("SELECT user_id FROM notes")} == {name}

            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(work, f"user {number}")

    first, second = explore(units, schedules=8), explore(units, schedules=8)
    assert first == second
    assert len(set(first.digests.values())) == 8


def test_a_lock_that_another_task_holds_in_the_database_is_waited_for(notes):
    """A statement that cannot go on before another task of the loop does is no deadlock of the test."""

    async def locked():
        async with open_pool(notes.conninfo, PoolLimits(size=2, overflow=0, ready=0)) as pool:

            async def hold(name):
                async with ScopedDatabase(pool, name).transaction() as transaction:
                    await transaction.execute("UPDATE counters SET value = value + 1 WHERE name = 'a'")
                    await trio.sleep(600)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, "ann")
                nursery.start_soon(hold, "bob")

    replay(locked, seed=0, patience=0.1)
    assert notes.outside("SELECT value FROM counters WHERE name = 'a'") == [(2,)]


async def test_an_async_test_is_told_not_to_be(explore):
    """A run of Trio cannot be within another one; it is no schedule's fault."""
    with pytest.raises(RuntimeError, match="from a test that is not async") as refused:
        explore(trio.lowlevel.checkpoint)
    assert not hasattr(refused.value, "__notes__")
