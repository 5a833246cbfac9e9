"""Units of work for one user: whole, in one round trip, and of that user's rows alone."""

from contextlib import suppress
from uuid import uuid4

import pytest
import trio

from nurseries.errors import Conflict, PoolExhausted, RequestEnded
from nurseries.postgres.failures import QueryFailed, TransactionConflict, UniqueViolation
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database, ScopedDatabase, Statement

INSERT = "INSERT INTO notes (text) VALUES ($1)"
TEXTS = "SELECT text FROM notes ORDER BY note_id"
WHO = "SELECT current_setting('app.user_id', true)"


@pytest.fixture
def ann(pool):
    return ScopedDatabase(pool, "ann")


@pytest.fixture
def bob(pool):
    return ScopedDatabase(pool, "bob")


async def test_each_user_sees_their_own_rows_alone(ann, bob, pool, notes):
    """Rows are there for their user and for nobody else, through every way of asking."""
    await ann.execute(INSERT, "of ann")
    await bob.batch([Statement(INSERT, ("of bob",))])
    async with ann.transaction() as tx:
        await tx.execute(INSERT, "also of ann")
    assert await ann.fetch(TEXTS) == [("of ann",), ("also of ann",)]
    assert await bob.batch([Statement(TEXTS)]) == [[("of bob",)]]
    async with bob.transaction() as tx:
        assert await tx.fetch(TEXTS) == [("of bob",)]
    assert await Database(pool, borrower="service").fetch(TEXTS) == []
    assert len(notes.outside("SELECT 1 FROM notes")) == 3


async def test_nothing_can_be_written_for_another_user(ann, notes):
    """A row that names somebody else is refused, and another's rows cannot be changed or deleted."""
    notes.admin.execute("INSERT INTO notes (user_id, text) VALUES ('bob', 'his')")
    with pytest.raises(QueryFailed) as refused:
        await ann.execute("INSERT INTO notes (user_id, text) VALUES ('bob', 'planted')")
    assert refused.value.sqlstate == "42501"
    assert await ann.execute("UPDATE notes SET text = 'changed'") == 0
    assert await ann.execute("DELETE FROM notes") == 0
    assert notes.outside("SELECT text FROM notes") == [("his",)]


async def test_the_identity_ends_with_the_unit(ann, pool):
    """Nobody is left set in a connection that comes back, be it after a unit, a transaction or a failure."""
    for unit in (Statement("SELECT 1"), Statement("SELECT 1 / 0")):
        with suppress(QueryFailed):
            await ann.batch([unit])
        async with pool.lease("test") as connection:
            (result,) = await connection.run([Statement(WHO)], commits=True)
            assert connection.rows(result) == [("",)]


async def test_a_batch_happens_whole_or_not_at_all(ann):
    """The statements of a batch are one transaction, although no BEGIN is sent."""
    with pytest.raises(QueryFailed):
        await ann.batch(
            [Statement(INSERT, ("first",)), Statement("SELECT 1 / 0"), Statement(INSERT, ("third",))]
        )
    assert await ann.fetch(TEXTS) == []
    results = await ann.batch(
        [Statement(INSERT, ("first",)), Statement(TEXTS), Statement(INSERT, ("third",))]
    )
    assert results == [[], [("first",)], []]
    assert await ann.fetch(TEXTS) == [("first",), ("third",)]


async def test_an_empty_batch_is_nothing(ann):
    """A batch of no statements gives no results."""
    assert await ann.batch([]) == []


async def test_a_commit_that_is_refused_raises_and_keeps_nothing(ann, pool, notes):
    """A constraint that is checked only at the commit fails the unit like any other."""
    late = "INSERT INTO late VALUES (1)"
    with pytest.raises(UniqueViolation):
        await ann.batch([Statement(late), Statement(late)])
    with pytest.raises(UniqueViolation):
        async with ann.transaction() as tx:
            await tx.execute(late)
            await tx.execute(late)
    assert notes.outside("SELECT * FROM late") == []
    assert pool.statistics().invalidated == 0


async def test_a_unique_key_is_a_conflict_that_names_its_constraint(ann):
    """The caller can tell what was taken, and psycopg's own error is the cause."""
    sql = "INSERT INTO notes (text, tag) VALUES ('x', 'same')"
    await ann.execute(sql)
    with pytest.raises(Conflict) as refused:
        await ann.execute(sql)
    assert isinstance(refused.value, UniqueViolation)
    assert refused.value.constraint == "notes_tag_key"
    assert refused.value.__cause__.sqlstate == "23505"


async def test_fetch_one_returns_a_row_or_none(ann):
    """No row is None, and of several the first is returned."""
    assert await ann.fetch_one("SELECT 1 WHERE false") is None
    assert await ann.fetch_one("SELECT n FROM generate_series(1, 3) AS n") == (1,)


async def test_execute_returns_how_many_rows_were_affected(ann):
    """The count is that of the statement's command tag, and 0 where it has none."""
    assert await ann.execute("INSERT INTO notes (text) SELECT 'x' FROM generate_series(1, 4)") == 4
    async with ann.transaction() as tx:
        assert await tx.execute("UPDATE notes SET text = 'y' WHERE note_id > 1") == 3
        assert await tx.execute("SET LOCAL work_mem = '8MB'") == 0


async def test_a_transaction_commits_at_its_end_and_not_before(ann, notes):
    """Others see the rows of a transaction once its block has been left."""
    async with ann.transaction() as tx:
        await tx.execute(INSERT, "one")
        assert await tx.fetch_one("SELECT count(*) FROM notes") == (1,)
        assert await tx.batch([Statement(INSERT, ("two",)), Statement(TEXTS)]) == [[], [("one",), ("two",)]]
        assert notes.outside("SELECT 1 FROM notes") == []
    assert len(notes.outside("SELECT 1 FROM notes")) == 2


async def test_a_transaction_whose_body_raises_is_rolled_back(ann, pool):
    """The exception goes on as it is, nothing is kept, and the connection is used again."""
    with pytest.raises(LookupError):
        async with ann.transaction() as tx:
            await tx.execute(INSERT, "one")
            raise LookupError
    assert await ann.fetch(TEXTS) == []
    assert pool.statistics().checked_in == 1
    assert pool.statistics().invalidated == 0


async def test_a_swallowed_failure_does_not_pass_for_a_commit(ann, pool):
    """PostgreSQL answers COMMIT of a failed transaction by a quiet ROLLBACK; the caller is told."""
    with pytest.raises(QueryFailed, match="nothing of it can be committed"):
        async with ann.transaction() as tx:
            await tx.execute(INSERT, "one")
            with pytest.raises(QueryFailed):
                await tx.fetch("SELECT 1 / 0")
    assert await ann.fetch(TEXTS) == []
    assert pool.statistics().invalidated == 0


async def test_a_transaction_that_is_not_used_sends_nothing(ann, notes):
    """The server does not hear of a block in which nothing happened."""
    await ann.fetch("SELECT 1")
    heard = "SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    before = notes.outside(heard)
    async with ann.transaction():
        pass
    assert len(before) == 1
    assert notes.outside(heard) == before


async def test_a_transaction_cannot_be_used_after_its_end(ann):
    """A reference that outlives the block is of no use."""
    async with ann.transaction() as tx:
        await tx.fetch("SELECT 1")
    with pytest.raises(trio.ClosedResourceError):
        await tx.fetch("SELECT 1")


async def test_two_tasks_cannot_use_a_transaction_at_once(ann, notes):
    """The second is refused and the first is not disturbed."""
    notes.admin.execute("SELECT pg_advisory_lock(1)")
    async with ann.transaction() as tx:
        await tx.fetch("SELECT 1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tx.fetch, "SELECT pg_advisory_xact_lock(1)")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await tx.fetch("SELECT 2")
            notes.admin.execute("SELECT pg_advisory_unlock(1)")
        assert await tx.fetch("SELECT 3") == [(3,)]


async def test_work_that_met_others_is_run_again(ann, notes):
    """A transaction that lost a deadlock or a race is repeated as a whole, at most three times."""
    tries = []

    async def work(tx):
        tries.append(await tx.execute(INSERT, "once"))
        if len(tries) < 3:
            raise TransactionConflict("as the server would say it")
        return "done"

    assert await ann.retrying(work) == "done"
    assert len(tries) == 3
    assert len(notes.outside("SELECT 1 FROM notes")) == 1


async def test_work_that_never_succeeds_is_given_up(ann):
    """After three tries the conflict is the caller's."""
    tries = []

    async def work(tx):
        tries.append(tx)
        raise TransactionConflict("again")

    with pytest.raises(TransactionConflict):
        await ann.retrying(work)
    assert len(tries) == 3


async def test_a_user_cannot_exceed_their_own_limit(notes):
    """One user's sixth connection waits, while another user's first does not."""
    limits = PoolLimits(size=4, overflow=4, per_user=2, waiters_per_user=0, ready=0)
    async with open_pool(notes.conninfo, limits) as pool:
        ann, bob = ScopedDatabase(pool, "ann"), ScopedDatabase(pool, "bob")
        async with ann.transaction(), ann.transaction():
            with pytest.raises(PoolExhausted):
                await ann.fetch("SELECT 1")
            assert await bob.fetch("SELECT 1") == [(1,)]


async def test_a_database_needs_a_user(pool):
    """No name is no identity: an empty one would be refused only by the policies."""
    with pytest.raises(ValueError, match="user"):
        ScopedDatabase(pool, "")


async def test_a_database_of_an_ended_request_is_of_no_use(ann):
    """What a request owned refuses to work once the request has ended."""
    ann.close()
    with pytest.raises(RequestEnded):
        await ann.fetch("SELECT 1")
    with pytest.raises(RequestEnded):
        async with ann.transaction():
            pass


async def test_identities_are_not_taken_from_what_a_caller_passes(ann, notes):
    """A parameter, however it looks, stays a value: the identity is the database's alone."""
    notes.admin.execute("INSERT INTO notes (user_id, text) VALUES ('bob', 'his')")
    hostile = "x'; SELECT set_config('app.user_id', 'bob', false); --"
    assert await ann.fetch("SELECT text FROM notes WHERE text <> $1", hostile) == []
    assert await ann.fetch("SELECT text FROM notes WHERE unit = $1 OR true", str(uuid4())) == []
