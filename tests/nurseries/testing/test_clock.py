"""Virtual time beside a real database."""

import threading

import pytest
import trio

from nurseries.errors import StatementTimeout
from nurseries.postgres.scoped import ScopedDatabase
from nurseries.testing import virtual_time


async def test_a_database_call_takes_no_time(virtual_time, pool):
    """A query that takes a tenth of a second ends within a deadline of a millisecond, and a day passes at once."""
    database = ScopedDatabase(pool, "ann")
    started = trio.current_time()
    with trio.fail_after(0.001):
        await database.fetch("SELECT pg_sleep(0.1)")
    assert trio.current_time() == started
    await trio.sleep(86_400)
    assert trio.current_time() == started + 86_400


async def test_time_passes_beside_a_call_only_when_it_is_over(virtual_time, pool):
    """Somebody who sleeps for a second wakes after a slow query, not in the middle of it."""
    order = []

    async def sleep():
        await trio.sleep(1)
        order.append("woke")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        await ScopedDatabase(pool, "ann").fetch("SELECT pg_sleep(0.2)")
        order.append("answered")
    assert order == ["answered", "woke"]


async def test_opening_a_connection_and_sending_much_take_no_time(virtual_time, pool):
    """The other waits of the driver: for the handshake, and for room in the socket."""
    with trio.fail_after(0.001):
        rows = await ScopedDatabase(pool, "ann").fetch("SELECT length($1)", "x" * 20_000_000)
    assert rows == [(20_000_000,)]


async def test_a_thread_takes_no_time(virtual_time):
    """A function in a worker thread is waited for, and no deadline passes."""
    release = threading.Event()
    threading.Timer(0.1, release.set).start()
    with trio.fail_after(0.001):
        assert await trio.to_thread.run_sync(release.wait, 30)


def test_what_never_comes_is_given_up_after_the_patience(notes):
    """A transaction that waits for the lock of one that sleeps lets time pass, and a timeout around it fires."""
    from nurseries.postgres.pool import PoolLimits, open_pool

    async def main():
        async with open_pool(notes.conninfo, PoolLimits(size=2, overflow=0, ready=0)) as two:
            touch = "UPDATE counters SET value = value + 1 WHERE name = 'a'"

            async def hold(*, task_status):
                async with ScopedDatabase(two, "ann").transaction() as transaction:
                    await transaction.execute(touch)
                    task_status.started()
                    await trio.sleep(3600)

            async with trio.open_nursery() as nursery:
                await nursery.start(hold)
                with trio.move_on_after(60) as waiting:
                    await ScopedDatabase(two, "bob").execute(touch)
                assert waiting.cancelled_caught
                await ScopedDatabase(two, "bob").execute(touch)

    with virtual_time(patience=0.1) as clock:
        trio.run(main, clock=clock)
    assert clock.current_time() >= 3600
    assert notes.outside("SELECT value FROM counters WHERE name = 'a'") == [(2,)]


async def test_the_database_s_own_time_goes_on(virtual_time, pool):
    """Its timeouts are in its time: a statement that is too slow for it is ended by it."""
    database = ScopedDatabase(pool, "ann")
    with pytest.raises(StatementTimeout):
        async with database.transaction() as transaction:
            await transaction.execute("SET LOCAL statement_timeout = 50")
            await transaction.fetch("SELECT pg_sleep(60)")


def test_real_time_is_back_afterwards(notes):
    """Outside of the block the driver waits as it always does."""
    from nurseries.postgres import parking

    before = parking.readable, parking.writable, parking.either, trio.to_thread.run_sync
    with virtual_time():
        assert parking.readable is not before[0]
    assert before == (parking.readable, parking.writable, parking.either, trio.to_thread.run_sync)
