"""The pool: bounds, fairness, and that nothing of one borrower reaches the next."""

import pytest
import trio
import trio.testing
from psycopg.conninfo import make_conninfo

from nurseries.errors import DatabaseUnavailable, PoolExhausted
from nurseries.postgres.failures import QueryFailed
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database, ScopedDatabase, Statement


async def ask(pool, sql, *params, borrower="test"):
    async with pool.lease(borrower) as connection:
        (result,) = await connection.run([Statement(sql, params)], commits=True)
        return connection.rows(result)


async def hold(pool, borrower, *, task_status):
    """Lease a connection until cancelled."""
    async with pool.lease(borrower) as connection:
        task_status.started(connection)
        await trio.sleep_forever()


async def borrow(pool, borrower, got):
    """Lease a connection, say which, and give it back."""
    async with pool.lease(borrower) as connection:
        got.append(connection)


async def test_a_connection_is_used_again(pool):
    """Two units after each other share one connection."""
    assert await ask(pool, "SELECT pg_backend_pid()") == await ask(pool, "SELECT pg_backend_pid()")
    assert pool.statistics().checked_in == 1


async def test_some_connections_are_ready_from_the_start(notes):
    """They are opened at once, and the rest when they are needed."""
    async with open_pool(notes.conninfo, PoolLimits(size=5, ready=3)) as pool:
        assert pool.statistics().checked_in == 3
        assert len(notes.sessions()) == 3


async def test_a_database_that_cannot_be_reached_is_said_at_the_start(notes):
    """A pool that could serve nobody does not open."""
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        async with open_pool(make_conninfo(notes.conninfo, dbname="missing")):
            pass


async def test_connections_end_with_the_pool(notes):
    """No session is left when the pool is closed, and a lease that outlived it ends with its return."""
    async with open_pool(notes.conninfo, PoolLimits(ready=2)) as pool:
        late = await pool.acquire("late")
    pool.release(late)
    assert late.is_closed
    with pytest.raises(DatabaseUnavailable):
        await pool.acquire("too late")
    while notes.sessions():
        await trio.lowlevel.checkpoint()


async def test_overflow_is_opened_under_load_and_closed_afterwards(pool, nursery, notes):
    """Beyond its size the pool opens connections for as long as they are needed."""
    async with trio.open_nursery() as borrowers:
        for n in range(5):
            await borrowers.start(
                lambda n=n, *, task_status: hold(pool, f"user {n}", task_status=task_status)
            )
        busy = pool.statistics()
        borrowers.cancel_scope.cancel()
    assert (busy.checked_out, busy.overflow, busy.utilization, busy.status) == (5, 2, 1.0, "critical")
    idle = pool.statistics()
    assert (idle.checked_in, idle.checked_out, idle.overflow, idle.peak) == (3, 0, 0, 5)
    assert idle.invalidated == 0


async def test_an_overflow_connection_goes_to_who_waits_for_it(notes):
    """It is not closed and opened again while somebody is waiting."""
    async with open_pool(notes.conninfo, PoolLimits(size=0, overflow=1, ready=0)) as pool:
        pids = []
        async with trio.open_nursery() as nursery:
            connection = await pool.acquire("first")
            nursery.start_soon(_append_pid, pool, pids)
            await trio.testing.wait_all_tasks_blocked()
            pool.release(connection)
        assert pids == [connection.pid]
        assert pool.statistics().checked_in == 0


async def _append_pid(pool, pids):
    async with pool.lease("second") as connection:
        pids.append(connection.pid)


@pytest.mark.parametrize(
    ("lent", "status"), [(0, "healthy"), (14, "healthy"), (15, "warning"), (17, "warning"), (18, "critical")]
)
async def test_the_status_tells_how_full_it_is(notes, lent, status):
    """Healthy below 75 %, warning from there, critical from 90 %."""
    async with open_pool(notes.conninfo, PoolLimits(size=10, overflow=10, per_user=20, ready=0)) as pool:
        connections = [await pool.acquire("one") for _ in range(lent)]
        assert pool.statistics().status == status
        for connection in connections:
            pool.release(connection)


async def test_who_waits_too_long_is_refused(notes, nursery, mock_clock):
    """The wait is bounded, counted, and says when to come back."""
    async with open_pool(notes.conninfo, PoolLimits(size=1, overflow=0, ready=1)) as pool:
        connection = await pool.acquire("one")
        async with trio.open_nursery() as waiting:

            async def wait():
                with pytest.raises(PoolExhausted) as refused:
                    await pool.acquire("two")
                assert refused.value.retry_after > 0

            waiting.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().waiting == 1
            mock_clock.jump(30)
        assert pool.statistics().timeouts == 1
        assert pool.statistics().waiting == 0
        pool.release(connection)
        assert await pool.acquire("two") is connection
        pool.release(connection)


async def test_a_pool_that_is_full_for_all_stops_making_people_wait(notes, mock_clock):
    """After some waits in vain the next are refused at once, until one probe has got a connection."""
    limits = PoolLimits(size=1, overflow=0, breaker_threshold=2, breaker_cooldown=5, wait_seconds=1, ready=1)
    async with open_pool(notes.conninfo, limits) as pool:
        connection = await pool.acquire("one")

        async def wait_in_vain():
            with pytest.raises(PoolExhausted):
                await pool.acquire("two")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain)
            nursery.start_soon(wait_in_vain)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1)
        assert pool.statistics().queueing.state == "open"
        with pytest.raises(PoolExhausted) as refused:
            await pool.acquire("three")
        assert refused.value.retry_after == 5
        mock_clock.jump(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_append_pid, pool, [])  # the probe
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(PoolExhausted):
                await pool.acquire("three")
            pool.release(connection)
        assert pool.statistics().queueing.state == "closed"


async def test_a_user_who_waits_for_themselves_harms_nobody(notes, mock_clock):
    """Waits behind one's own leases do not open the breaker that refuses everybody."""
    limits = PoolLimits(size=2, overflow=0, per_user=1, breaker_threshold=1, wait_seconds=1, ready=2)
    async with open_pool(notes.conninfo, limits) as pool:
        connection = await pool.acquire("greedy")

        async def wait_in_vain():
            with pytest.raises(PoolExhausted):
                await pool.acquire("greedy")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(1)
        assert pool.statistics().queueing.state == "closed"
        pool.release(await pool.acquire("modest"))
        pool.release(connection)


async def test_everybody_is_served_in_turn(notes):
    """With the pool exhausted, those who wait get a connection in the order in which they came."""
    order = []
    async with open_pool(notes.conninfo, PoolLimits(size=1, overflow=0, ready=1)) as pool:

        async def unit(name):
            async with pool.lease(name):
                order.append(name)

        async with trio.open_nursery() as nursery:
            connection = await pool.acquire("holder")
            for n in range(10):
                nursery.start_soon(unit, f"user {n}")
                await trio.testing.wait_all_tasks_blocked()
            pool.release(connection)
    assert order == [f"user {n}" for n in range(10)]


async def test_an_old_connection_is_replaced(notes, mock_clock):
    """After an hour a connection has done its work, whether it is lent at that moment or idle."""
    async with open_pool(notes.conninfo, PoolLimits(ready=0)) as pool:
        first = await pool.acquire("test")
        pool.release(first)
        mock_clock.jump(3599)
        assert await pool.acquire("test") is first
        pool.release(first)
        mock_clock.jump(1)
        second = await pool.acquire("test")
        assert second is not first
        assert first.is_closed
        mock_clock.jump(3600)
        pool.release(second)
        assert second.is_closed
        assert pool.statistics().invalidated == 0


@pytest.mark.parametrize(
    "left_behind",
    [
        "SET app.user_id = 'mallory'",
        "SELECT set_config('app.user_id', 'mallory', false)",
        "CREATE TEMP TABLE notes (text text)",
        "SELECT 1 AS text INTO TEMP notes",
        "SELECT pg_advisory_lock(1)",
        "LISTEN something",
        "PREPARE mine AS SELECT 1",
        "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
        "DO $$BEGIN PERFORM set_config('app.user_id', 'mallory', false); END$$",
    ],
)
async def test_what_a_borrower_leaves_behind_dies_with_their_connection(pool, left_behind):
    """A session that could carry anything over is not lent again, whichever way it was used."""
    mallory, ann = ScopedDatabase(pool, "mallory"), ScopedDatabase(pool, "ann")
    await mallory.fetch(left_behind)
    assert pool.statistics().checked_in == 0
    async with mallory.transaction() as tx:
        await tx.fetch(left_behind)
    assert pool.statistics().checked_in == 0
    assert pool.statistics().invalidated == 2
    service = Database(pool, borrower="service")
    assert await service.fetch("SELECT current_setting('app.user_id', true)") == [("",)]
    assert await ann.fetch(
        "SELECT pg_my_temp_schema(), count(*) FROM pg_locks WHERE locktype = 'advisory'"
    ) == [(0, 0)]


async def test_a_transaction_that_is_left_open_dies_with_its_connection(pool, notes):
    """A BEGIN that slips into a unit is not inherited by the next borrower, and nothing of it is kept."""
    db = ScopedDatabase(pool, "mallory")
    await db.batch([Statement("BEGIN"), Statement("INSERT INTO notes (text) VALUES ('x')")])
    assert pool.statistics().checked_in == 0
    assert await db.fetch("SELECT * FROM notes") == []


async def test_plain_work_keeps_its_connection(pool):
    """Reading, writing, failing, and transactions are no reason to open a new connection."""
    db = ScopedDatabase(pool, "ann")
    await db.batch(
        [Statement("INSERT INTO notes (text) VALUES ('x')"), Statement("UPDATE notes SET text = 'y'")]
    )
    async with db.transaction() as tx:
        await tx.fetch("WITH gone AS (DELETE FROM notes RETURNING *) SELECT * FROM gone")
    with pytest.raises(QueryFailed):
        await db.fetch("SELECT 1 / 0")
    assert pool.statistics().invalidated == 0
    assert pool.statistics().checked_in == 1


async def test_a_lease_comes_back_from_a_block_that_raises(pool):
    """The connection and the place in the budget return, whatever the body does."""
    with pytest.raises(LookupError):
        async with pool.lease("test"):
            raise LookupError
    assert (pool.statistics().checked_in, pool.statistics().checked_out) == (1, 0)


async def test_a_connection_that_comes_back_soon_is_waited_for(notes):
    """Instead of opening one beyond the pool's size; whoever waits gets the very connection that returns."""
    limits = PoolLimits(size=1, overflow=1, ready=1, patience_seconds=60)
    async with open_pool(notes.conninfo, limits) as pool, trio.open_nursery() as nursery:
        first = await pool.acquire("first")
        got = []
        nursery.start_soon(borrow, pool, "second", got)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        assert pool.statistics().overflow == 0
        pool.release(first)
        with trio.fail_after(10):
            while not got:
                await trio.lowlevel.checkpoint()
        assert got == [first]
        assert pool.statistics().peak == 1


async def test_patience_ends_when_there_is_room_for_another_connection(notes):
    """A connection that is discarded instead of returning makes room at once: nobody waits for what is gone."""
    limits = PoolLimits(size=1, overflow=1, ready=1, patience_seconds=60)
    async with open_pool(notes.conninfo, limits) as pool, trio.open_nursery() as nursery:
        first = await pool.acquire("first")
        got = []
        nursery.start_soon(borrow, pool, "second", got)
        await trio.testing.wait_all_tasks_blocked()
        first.close()
        pool.release(first)
        with trio.fail_after(10):
            while not got:
                await trio.lowlevel.checkpoint()
        assert got[0] is not first
