"""What a database can do to us, and what comes of it."""

import signal
from functools import partial
from os import kill

import pytest
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from trio.testing import wait_all_tasks_blocked

from nurseries.errors import Conflict, DatabaseUnavailable, OutcomeUnknown, StatementTimeout
from nurseries.postgres.connection import Connection
from nurseries.postgres.embedded import open_embedded
from nurseries.postgres.failures import ConnectionLost
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database, ScopedDatabase, Statement
from tests.fixtures.postgres_proxy import proxied

INSERT = "INSERT INTO notes (text) VALUES ($1)"
WAIT_FOR_GATE = "SELECT pg_advisory_xact_lock(1)"
COMMITS_SLOWLY = """
    CREATE FUNCTION wait_for_gate() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION wait_for_gate();
"""


@pytest.fixture
def ann(pool):
    return ScopedDatabase(pool, "ann")


@pytest.fixture
def gate(notes):
    """A function that opens the gate; until then, what waits for it waits."""
    notes.admin.execute("SELECT pg_advisory_lock(1)")
    return lambda: notes.admin.execute("SELECT pg_advisory_unlock(1)")


async def wait_at_gate(notes):
    """Wait until a session waits for the gate, and return its process id."""
    while True:
        waiting = notes.outside("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        if waiting:
            return waiting[0][0]
        await trio.lowlevel.checkpoint()


async def wait_gone(notes, pid):
    while pid in dict(notes.sessions()):
        await trio.lowlevel.checkpoint()


def texts(notes):
    return [text for (text,) in notes.outside("SELECT text FROM notes ORDER BY note_id")]


# -- a backend is killed -----------------------------------------------------------------------------


async def test_an_idle_connection_that_was_killed_is_not_lent(ann, pool, notes):
    """The death is seen at checkout, before anything is sent over it."""
    ((pid,),) = await ann.fetch("SELECT pg_backend_pid()")
    notes.outside("SELECT pg_terminate_backend(%s)", pid)
    await wait_gone(notes, pid)
    async with pool.lease("test") as connection:
        assert connection.pid != pid
    assert pool.statistics().invalidated == 1


async def test_a_unit_whose_backend_was_killed_runs_again_once(ann, notes, gate):
    """The server said that it stopped before the commit, so even a write is repeated, and happens once."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ann.batch, [Statement(INSERT, ("once",)), Statement(WAIT_FOR_GATE)])
        first = await wait_at_gate(notes)
        notes.outside("SELECT pg_terminate_backend(%s)", first)
        await wait_gone(notes, first)
        assert await wait_at_gate(notes) != first
        gate()
    assert texts(notes) == ["once"]


async def test_a_transaction_whose_backend_was_killed_is_lost(ann, pool, notes):
    """Its body is the caller's to repeat; the connection is discarded."""
    with pytest.raises(ConnectionLost):
        async with ann.transaction() as tx:
            await tx.execute(INSERT, "never")
            ((pid,),) = await tx.fetch("SELECT pg_backend_pid()")
            notes.outside("SELECT pg_terminate_backend(%s)", pid)
            await tx.fetch("SELECT 1")
    assert texts(notes) == []
    assert pool.statistics().invalidated == 1


async def test_a_backend_that_was_killed_before_the_commit_has_surely_rolled_back(ann, notes):
    """It said farewell before it was told to commit: no doubt about the outcome."""
    with pytest.raises(ConnectionLost):
        async with ann.transaction() as tx:
            await tx.execute(INSERT, "never")
            ((pid,),) = await tx.fetch("SELECT pg_backend_pid()")
            notes.outside("SELECT pg_terminate_backend(%s)", pid)
            await wait_gone(notes, pid)
    assert texts(notes) == []


# -- a commit is not answered ------------------------------------------------------------------------


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize("explicit", [True, False])
async def test_a_backend_killed_during_the_commit_leaves_the_outcome_unknown(ann, pool, notes, explicit):
    """Nobody guesses: not for a transaction, and not for a unit that commits by itself. Nor is it repeated."""
    notes.admin.execute(COMMITS_SLOWLY)
    outcome = []

    async def unit():
        with pytest.raises(OutcomeUnknown):
            if explicit:
                async with ann.transaction() as tx:
                    await tx.execute(INSERT, "perhaps")
            else:
                await ann.execute(INSERT, "perhaps")
        outcome.append("unknown")

    async with trio.open_nursery() as units:
        units.start_soon(unit)
        notes.outside("SELECT pg_terminate_backend(%s)", await wait_at_gate(notes))
    assert outcome == ["unknown"]
    assert texts(notes) == []  # looked up
    assert pool.statistics().invalidated == 1


async def test_a_commit_whose_answer_is_lost_is_unknown_and_may_have_happened(notes):
    """The connection breaks between the commit and its answer: the row is there, and nobody claims to know."""
    async with proxied(notes.conninfo) as (proxy, conninfo), open_pool(conninfo) as pool:
        ann = ScopedDatabase(pool, "ann")

        async def committed():
            while not texts(notes):
                await trio.lowlevel.checkpoint()

        proxy.committed = committed
        proxy.cut_after = b"COMMIT"
        with pytest.raises(OutcomeUnknown):
            async with ann.transaction() as tx:
                await tx.execute(INSERT, "there")
    assert texts(notes) == ["there"]


async def test_a_write_whose_answer_is_lost_is_unknown_and_a_question_is_asked_again(notes):
    """A unit that may have written is never repeated; a question is, on another connection."""
    async with proxied(notes.conninfo) as (proxy, conninfo), open_pool(conninfo) as pool:
        ann = ScopedDatabase(pool, "ann")
        proxy.cut_after = b"INSERT"
        with pytest.raises(OutcomeUnknown):
            await ann.execute(INSERT, "perhaps")

        async def only_once():
            proxy.cut_after = None

        proxy.committed = only_once
        proxy.cut_after = b"'question'"
        assert await ann.fetch("SELECT 'question'") == [("question",)]


async def test_a_commit_that_is_never_answered_is_given_up(notes, mock_clock):
    """The shield around COMMIT has a deadline; then the connection is closed and the outcome unknown."""
    async with proxied(notes.conninfo) as (proxy, conninfo), open_pool(conninfo) as pool:
        ann = ScopedDatabase(pool, "ann")
        proxy.silent_after = b"COMMIT"
        outcome = []

        scope = trio.CancelScope()

        async def unit():
            with scope, pytest.raises(OutcomeUnknown):
                async with ann.transaction() as tx:
                    await tx.execute(INSERT, "there")
            outcome.append("unknown")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(unit)
            while not texts(notes):
                await trio.lowlevel.checkpoint()
            scope.cancel()  # COMMIT is shielded: this does not end it
            await wait_all_tasks_blocked()
            assert outcome == []
            mock_clock.jump(5)
        assert outcome == ["unknown"]
        assert pool.statistics().invalidated == 1


# -- time limits, locks, deadlocks -------------------------------------------------------------------


async def test_a_statement_timeout_ends_the_unit_and_keeps_the_connection(notes):
    """The server's own limit is told as what it is."""
    async with open_pool(make_conninfo(notes.conninfo, options="-c statement_timeout=50")) as pool:
        with pytest.raises(StatementTimeout):
            await ScopedDatabase(pool, "ann").fetch("SELECT pg_sleep(60)")
        assert pool.statistics().invalidated == 0


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_transaction_that_idles_too_long_is_rolled_back(notes, goes_on):
    """The server ends it; whoever goes on with it, or commits it, learns that it is lost."""
    options = "-c idle_in_transaction_session_timeout=50"
    async with open_pool(make_conninfo(notes.conninfo, options=options)) as pool:
        with pytest.raises(ConnectionLost):
            async with ScopedDatabase(pool, "ann").transaction() as tx:
                await tx.execute(INSERT, "never")
                ((pid,),) = await tx.fetch("SELECT pg_backend_pid()")
                await wait_gone(notes, pid)
                if goes_on:
                    await tx.fetch("SELECT 1")
        assert texts(notes) == []


async def test_a_long_lock_is_a_conflict(notes):
    """Who may not wait any longer for a lock hears that somebody holds it."""
    notes.admin.execute("SELECT pg_advisory_lock(1)")
    async with open_pool(make_conninfo(notes.conninfo, options="-c lock_timeout=50")) as pool:
        with pytest.raises(Conflict):
            await ScopedDatabase(pool, "ann").fetch(WAIT_FOR_GATE)


async def test_a_deadlock_is_resolved_by_running_the_loser_again(ann, pool, notes):
    """Two transactions that lock each other out both happen in the end."""
    notes.admin.execute(
        f"ALTER ROLE {conninfo_to_dict(notes.conninfo)['user']} SET deadlock_timeout = '10ms'"
    )
    met = trio.Event()
    arrived = []

    async def transfer(first, second, tx):
        await tx.execute("UPDATE counters SET value = value + 1 WHERE name = $1", first)
        arrived.append(first)
        if len(arrived) == 2:
            met.set()
        await met.wait()
        await tx.execute("UPDATE counters SET value = value + 1 WHERE name = $1", second)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ann.retrying, partial(transfer, "a", "b"))
        nursery.start_soon(ann.retrying, partial(transfer, "b", "a"))
    assert len(arrived) >= 3  # one of them ran again
    assert notes.outside("SELECT value FROM counters") == [(2,), (2,)]


async def test_a_serialization_failure_of_a_unit_is_run_again(notes, gate):
    """A unit that lost against a concurrent write is repeated by itself, and sees that write."""
    options = "-c default_transaction_isolation=serializable"
    async with open_pool(make_conninfo(notes.conninfo, options=options)) as pool:
        service = Database(pool, borrower="service")
        add = Statement("UPDATE counters SET value = value + 1 WHERE name = 'a'")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.batch, [Statement(WAIT_FOR_GATE), add])
            await wait_at_gate(notes)
            notes.admin.execute("UPDATE counters SET value = 10 WHERE name = 'a'")
            gate()
    assert notes.outside("SELECT value FROM counters WHERE name = 'a'") == [(11,)]


async def test_a_query_without_a_user_sees_nothing(ann, notes):
    """A connection that nobody told whom it acts for has no rows, before and after it was told once."""
    await ann.execute(INSERT, "of ann")
    connection = await Connection.open(notes.conninfo)
    for _ in range(2):
        (result,) = await connection.run([Statement("SELECT * FROM notes")], commits=True)
        assert connection.rows(result) == []
        await connection.run([Statement("SELECT set_config('app.user_id', 'ann', true)")], commits=True)
    connection.close()


# -- the whole server is gone ------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
async def test_a_database_that_went_away_is_used_again_when_it_is_back(data_dir, how):
    """Units fail at once while it is away, the breaker spares it, and nothing has to be restarted on our side."""
    async with open_embedded(data_dir, settings={"fsync": "off"}) as postgres:
        limits = PoolLimits(size=3, ready=3, breaker_threshold=2, breaker_cooldown=0)
        async with open_pool(postgres.conninfo(), limits) as pool:
            db = Database(pool, borrower="service")
            assert await db.fetch("SELECT 1") == [(1,)]
            kill(postgres.pid, how)
            await postgres.wait()
            for _ in range(4):
                with pytest.raises(DatabaseUnavailable):
                    await db.fetch("SELECT 1")
            assert pool.statistics().connecting.state != "closed"
            assert pool.statistics().checked_out == 0
            await postgres.start()
            assert await db.fetch("SELECT 1") == [(1,)]
            assert pool.statistics().connecting.state == "closed"
