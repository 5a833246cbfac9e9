"""Cancellation at any moment: clean connections, no lost lease, nothing left running, nobody else's rows."""

import math
import os
import random
import signal
import sys
from collections import Counter

import pytest
import trio

from nurseries.postgres.exchange import Exchange
from nurseries.postgres.pool import Pool, PoolLimits, open_pool
from nurseries.postgres.scoped import ScopedDatabase, Statement

CANCELLATIONS = 10_000
SECONDS = 600  # so that a storm that does not get on ends; nothing else is told by it
TASKS = 12
TRIES = 20  # units of each task by which the pace of this machine is told
USERS = 40
INSERT = "INSERT INTO notes (text, unit) VALUES ($1, $2)"
MINE = "SELECT user_id, current_setting('app.user_id') FROM notes ORDER BY note_id DESC LIMIT 5"
UNSOUND_UNITS = "SELECT unit FROM notes GROUP BY unit HAVING count(*) <> 2 OR count(DISTINCT user_id) <> 1"


class WatchedPool(Pool):
    """A pool that looks at every connection before it is used, and counts."""

    lent = 0
    stopped = 0

    async def acquire(self, borrower):
        connection = await super().acquire(borrower)
        assert connection.is_clean
        assert connection.is_alive
        assert not connection.in_transaction
        self.lent += 1
        return connection


@pytest.fixture
def watched(monkeypatch):
    """Pools are watched, and the statements that a cancellation stopped on the server are counted."""
    stop = Exchange.stop

    async def counted(self):
        WatchedPool.stopped += 1
        return await stop(self)

    monkeypatch.setattr(WatchedPool, "stopped", 0)
    monkeypatch.setattr(Exchange, "stop", counted)
    monkeypatch.setattr("nurseries.postgres.pool.Pool", WatchedPool)


class CancelAtStep(trio.abc.Instrument):
    """Cancels `scope` as the task of `watch` begins its `step`-th step within it."""

    def __init__(self, step):
        self.step = step
        self.steps = 0
        self.fired = False
        self.scope = None
        self.task = None

    def watch(self, scope, task):
        self.scope, self.task = scope, task

    def before_task_step(self, task):
        if task is self.task and not self.fired:
            self.steps += 1
            if self.steps == self.step:
                self.fired = True
                self.scope.cancel()


LOCKS = "SELECT * FROM pg_locks WHERE pid = ANY(%s) AND locktype <> 'virtualxid'"


async def at_rest(pool, notes):
    """Nothing is lent, nothing runs on the server, no lock is held, and every unit is whole.

    A session that comes back is at rest at once. One that was closed, perhaps before it was open, hears of it when
    its process gets to run, and until then is in whatever state it was.
    """
    statistics = pool.statistics()
    assert (statistics.checked_out, statistics.waiting) == (0, 0)
    assert pool._budget.statistics().users == 0
    assert all(connection.is_clean for connection in pool._idle)
    kept = [connection.pid for connection in pool._idle]
    assert [state for pid, state in notes.sessions() if pid in kept and state != "idle"] == []
    assert notes.outside(LOCKS, kept) == []
    with trio.fail_after(60):
        while dict(notes.sessions()).keys() - kept:
            await trio.lowlevel.checkpoint()
    assert notes.outside(UNSOUND_UNITS) == []


async def assert_own_rows(db, rows):
    assert {user for row in rows for user in row} <= {db._borrower}


# -- ten thousand random moments ---------------------------------------------------------------------


async def read(db, _):
    await assert_own_rows(db, await db.fetch(MINE))


async def write(db, unit):
    await db.batch([Statement(INSERT, ("one", unit)), Statement(INSERT, ("two", unit))])


async def converse(db, unit):
    async with db.transaction() as tx:
        await tx.execute(INSERT, "one", unit)
        await assert_own_rows(db, await tx.fetch(MINE))
        await tx.execute(INSERT, "two", unit)


async def linger(db, _):
    await db.fetch("SELECT pg_sleep(60)")


UNITS = [read, read, write, write, converse, converse, linger]


async def all_at_once(client):
    """Run that many of it."""
    async with trio.open_nursery() as clients:
        for _ in range(TASKS):
            clients.start_soon(client)


async def pace_of(pool, chance):
    """Return how many seconds a unit takes here and now, with as many beside it as in the storm."""

    async def client():
        for number in range(TRIES):
            db = ScopedDatabase(pool, f"user {chance.randrange(USERS)}")
            await UNITS[number % UNITS.index(linger)](db, chance_uuid(chance))

    began = trio.current_time()
    await all_at_once(client)
    return (trio.current_time() - began) / TRIES


async def storm(pool, chance, counts):
    """Run units of random users and cancel them at random moments, until enough have been cancelled.

    The moments are of the order of what a unit takes, whatever that is on this machine. One unit in five is let
    finish, so that a cancelled one is often followed by one that would notice.
    """
    pace = await pace_of(pool, chance)

    async def client():
        while counts["cancelled"] < CANCELLATIONS:
            db = ScopedDatabase(pool, f"user {chance.randrange(USERS)}")
            unit = chance.choice(UNITS)
            patience = chance.expovariate(1 / pace)
            if unit is not linger and chance.random() < 0.2:
                patience = math.inf
            with trio.move_on_after(patience) as scope:
                await unit(db, chance_uuid(chance))
            counts["cancelled" if scope.cancelled_caught else "finished"] += 1

    await all_at_once(client)


def chance_uuid(chance):
    return f"{chance.getrandbits(128):032x}"


@pytest.mark.usefixtures("watched")
def test_ten_thousand_random_cancellations_leave_nothing_behind(notes, capsys):
    """Whatever a unit was doing when it was cancelled, the next borrower cannot tell that it was there."""
    seed = random.SystemRandom().getrandbits(32)
    counts = Counter()

    async def main():
        limits = PoolLimits(size=8, overflow=4, per_user=3, waiters_per_user=1000)
        async with open_pool(notes.conninfo, limits) as pool:
            with trio.move_on_after(SECONDS) as scope:
                await storm(pool, random.Random(seed), counts)
            assert not scope.cancelled_caught, f"only {counts} within {SECONDS} s"
            await at_rest(pool, notes)
            counts["stopped on the server"] = pool.stopped
            counts["connections lent"] = pool.lent
            counts["invalidated"] = pool.statistics().invalidated

    trio.run(main)
    with capsys.disabled():
        sys.stdout.write(f"\n  storm {seed} on Python {sys.version.split()[0]}: {dict(counts)}\n")
    assert counts["cancelled"] >= CANCELLATIONS
    assert counts["stopped on the server"] >= CANCELLATIONS / 10
    assert counts["finished"] >= CANCELLATIONS / 10
    # A cancelled statement is stopped, not amputated: connections survive their borrowers.
    assert counts["invalidated"] < counts["connections lent"] / 100


# -- every moment ------------------------------------------------------------------------------------


async def many_units(db, unit):
    """A life with all kinds of units in it."""
    await write(db, unit)
    async with db.transaction() as tx:
        await tx.execute(INSERT, "one", unit[::-1])
        await tx.batch([Statement(MINE), Statement(INSERT, ("two", unit[::-1]))])
    await read(db, unit)


async def failing_transaction(db, unit):
    """A transaction whose body fails, so that it is rolled back."""
    try:
        async with db.transaction() as tx:
            await tx.execute(INSERT, "one", unit)
            raise LookupError  # noqa: TRY301  # this is the body that fails
    except LookupError:
        await read(db, unit)


async def queueing(db, unit):
    """A unit that waits for the only connection."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, db, unit)
        await converse(db, unit)


WORKS = [read, write, converse, many_units, failing_transaction, queueing]


async def cancel_once(notes, work, chance, *, ready, cancel):
    """Run `work` beside `cancel(scope)`, look at what is left, and return whether it was cancelled."""
    async with open_pool(notes.conninfo, PoolLimits(size=1, overflow=0, ready=ready)) as pool:
        db = ScopedDatabase(pool, "ann")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel, scope)
                await work(db, chance_uuid(chance))
                nursery.cancel_scope.cancel()
        await at_rest(pool, notes)
        await assert_own_rows(db, await ScopedDatabase(pool, "bob").fetch(MINE))
    return scope.cancelled_caught


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("ready", [0, 1])
def test_a_cancellation_at_every_step_of_the_task_leaves_nothing_behind(notes, work, ready):
    """For every k, cancel as the task begins its k-th step, then look; the last run is not cancelled."""
    chance = random.Random(0)

    async def main(instrument):
        async def watch(scope):
            instrument.watch(scope, parent)

        parent = trio.lowlevel.current_task()
        await cancel_once(notes, work, chance, ready=ready, cancel=watch)

    step, fired = 0, True
    while fired:
        step += 1
        instrument = CancelAtStep(step)
        trio.run(main, instrument, instruments=[instrument])
        fired = instrument.fired
    assert step > 2


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("work", WORKS)
def test_a_cancellation_at_every_pass_of_the_scheduler_leaves_nothing_behind(notes, capsys, work):
    """For many a k, cancel after k passes, so also while the server is working: a pass takes microseconds."""
    chance = random.Random(0)

    async def main(passes):
        async def cancel(scope):
            for _ in range(passes):
                await trio.lowlevel.checkpoint()
            scope.cancel()

        return await cancel_once(notes, work, chance, ready=1, cancel=cancel)

    cancelled = finished = 0
    for passes in [*range(100), *range(100, 1000, 10)]:
        if trio.run(main, passes):
            cancelled, finished = cancelled + 1, 0
        else:
            finished += 1
        if passes >= 100 and finished == 10:
            break  # runs differ, so the first that finishes in time is not the end
    with capsys.disabled():
        sys.stdout.write(f"\n  {work.__name__}: {cancelled} cancelled, {WatchedPool.stopped} on the server\n")
    assert WatchedPool.stopped > 0


# -- while cleaning up -------------------------------------------------------------------------------


async def test_a_second_cancellation_does_not_disturb_the_cleanup(pool, notes):
    """Cancelled while the first cancellation is being cleaned up, the connection still comes back clean."""
    db = ScopedDatabase(pool, "ann")
    with trio.CancelScope() as outer, trio.CancelScope() as inner:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.fetch, "SELECT pg_sleep(60)")
            await notes.wait_running("SELECT pg_sleep(60)")
            inner.cancel()
            outer.cancel()
    await at_rest(pool, notes)
    assert pool.statistics().checked_in == 1
    assert pool.statistics().invalidated == 0


async def test_a_server_that_ignores_cancellation_costs_its_connection(pool, notes, mock_clock):
    """A server that does not stop within the time of a cleanup is left to itself, without its connection."""
    db = ScopedDatabase(pool, "ann")
    scope = trio.CancelScope()

    async def unit():
        with scope:
            await db.fetch("SELECT pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unit)
        pid = await notes.wait_running("SELECT pg_sleep(60)")
        os.kill(pid, signal.SIGSTOP)
        try:
            scope.cancel()
            while pool.statistics().checked_out:
                await trio.testing.wait_all_tasks_blocked(0.001)
                mock_clock.jump(0.5)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert pool.statistics().invalidated == 1
    assert pool.statistics().checked_in == 0


async def test_what_was_cancelled_before_it_was_sent_was_not_sent(pool, notes):
    """A unit in a scope that is cancelled already does not reach the server."""
    db = ScopedDatabase(pool, "ann")
    with trio.CancelScope() as scope:
        scope.cancel()
        await db.execute("INSERT INTO notes (text) VALUES ('never')")
    assert scope.cancelled_caught
    assert notes.outside("SELECT * FROM notes") == []


async def test_a_cancelled_write_of_its_own_is_whole_or_absent(pool, notes):
    """A unit that is stopped on the server has not committed."""
    db = ScopedDatabase(pool, "ann")
    insert, sleep = Statement("INSERT INTO notes (text) VALUES ('never')"), Statement("SELECT pg_sleep(60)")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(db.batch, [insert, sleep])
        await notes.wait_running(sleep.sql)
        nursery.cancel_scope.cancel()
    assert notes.outside("SELECT * FROM notes") == []


def test_the_sweep_finds_a_lease_that_is_lost(notes):
    """The instrument itself: a pool that forgets a lease on cancellation is caught."""

    class Leaky(Pool):
        async def acquire(self, borrower):
            connection = await super().acquire(borrower)
            await trio.lowlevel.checkpoint()  # a cancellation here loses the lease
            return connection

    lost = []

    async def main(instrument):
        pool = Leaky(notes.conninfo, PoolLimits())
        with trio.CancelScope() as scope:
            instrument.watch(scope, trio.lowlevel.current_task())
            await read(ScopedDatabase(pool, "ann"), None)
        lost.append(pool.statistics().checked_out)
        for connection in [*pool._idle, *pool._lent]:
            connection.close()

    for step in range(1, 8):
        instrument = CancelAtStep(step)
        trio.run(main, instrument, instruments=[instrument])
    assert 1 in lost
