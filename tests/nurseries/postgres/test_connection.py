"""One session: its exchanges, its refusals, and what is left after each."""

import pytest
import trio
from psycopg.errors import lookup

from nurseries.errors import Conflict, DatabaseUnavailable, StatementTimeout, StorageFull
from nurseries.postgres import connection as connection_module
from nurseries.postgres.connection import Connection
from nurseries.postgres.failures import (
    ConnectionLost,
    QueryFailed,
    TransactionConflict,
    UniqueViolation,
    translate,
)
from nurseries.postgres.statement import Statement


@pytest.fixture
async def connection(notes):
    connection = await Connection.open(notes.conninfo)
    yield connection
    connection.close()


async def ask(connection, sql, *params):
    (result,) = await connection.run([Statement(sql, params)], commits=True)
    return connection.rows(result)


async def test_a_refused_statement_leaves_the_session_clean(connection):
    """A mistake in SQL costs the unit and nothing else."""
    for sql in ("SELECT nothing FROM nowhere", "SELECT 1 / 0", "SELECT $1"):
        with pytest.raises(QueryFailed):
            await ask(connection, sql, *(["x", "y"] if "$" in sql else []))
        assert connection.is_clean
    assert await ask(connection, "SELECT 1") == [(1,)]


async def test_a_statement_that_failed_to_prepare_is_prepared_again(connection, notes):
    """What the server never prepared is not taken for prepared the next time."""
    for _ in range(2):
        with pytest.raises(QueryFailed):
            await ask(connection, "SELECT * FROM later")
    notes.admin.execute(
        "CREATE TABLE later (n int); GRANT SELECT ON later TO PUBLIC; INSERT INTO later VALUES (1)"
    )
    assert await ask(connection, "SELECT * FROM later") == [(1,)]
    with pytest.raises(QueryFailed):
        await connection.run([Statement("SELECT 1 / 0"), Statement("SELECT 'skipped'")], commits=True)
    assert await ask(connection, "SELECT 'skipped'") == [("skipped",)]


async def test_the_same_statement_may_stand_in_a_unit_many_times(connection):
    """It is prepared once and answered as often as it was sent."""
    statement = "SELECT $1::int"
    results = await connection.run([Statement(statement, (n,)) for n in range(100)], commits=True)
    assert [connection.rows(result) for result in results] == [[(n,)] for n in range(100)]
    prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement = $1"
    assert await ask(connection, prepared, statement) == [(1,)]


async def test_prepared_statements_are_bounded(connection, monkeypatch):
    """However many different statements a session runs, the server keeps a bounded number of them."""
    monkeypatch.setattr(connection_module, "MAX_PREPARED", 10)
    for n in range(50):
        assert await ask(connection, f"SELECT {n}") == [(n,)]
    ((kept,),) = await ask(connection, "SELECT count(*) FROM pg_prepared_statements")
    assert kept <= 11
    assert await ask(connection, "SELECT 0") == [(0,)]


async def test_a_table_that_changed_under_a_prepared_statement_is_a_conflict(connection, notes):
    """The session is given up, and the unit can be run again on another."""
    notes.admin.execute("CREATE TABLE moving (n int); GRANT SELECT ON moving TO PUBLIC")
    assert await ask(connection, "SELECT * FROM moving") == []
    notes.admin.execute("ALTER TABLE moving ADD m int")
    with pytest.raises(TransactionConflict):
        await ask(connection, "SELECT * FROM moving")
    assert connection.is_closed


async def test_more_than_the_socket_takes_is_sent_while_answers_are_read(connection):
    """Ten megabytes there and back in one unit do not lock the two sides against each other."""
    text = "x" * 1_000_000
    results = await connection.run([Statement("SELECT $1::text", (text,))] * 10, commits=True)
    assert all(connection.rows(result) == [(text,)] for result in results)


async def test_two_tasks_cannot_use_a_session_at_once(connection, notes):
    """The second is refused, and the first gets its own answer."""
    notes.admin.execute("SELECT pg_advisory_lock(1)")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, connection, "SELECT pg_advisory_xact_lock(1)")
        await trio.testing.wait_all_tasks_blocked()
        assert not connection.is_clean
        with pytest.raises(trio.BusyResourceError):
            await ask(connection, "SELECT 1")
        notes.admin.execute("SELECT pg_advisory_unlock(1)")
    assert connection.is_clean


@pytest.mark.parametrize("sql", ["COPY (SELECT 1) TO STDOUT", "COPY late FROM STDIN"])
async def test_copy_is_refused_and_costs_the_session(connection, sql):
    """A protocol that this driver does not speak ends the session, rather than confusing it."""
    with pytest.raises(QueryFailed):
        await ask(connection, sql)
    assert connection.is_closed


async def test_a_closed_session_says_so(connection):
    """Whoever still holds it gets an error of ours, and closing it again is harmless."""
    connection.close()
    connection.close()
    assert not connection.is_clean
    assert not connection.is_alive
    with pytest.raises(ConnectionLost):
        await ask(connection, "SELECT 1")


async def test_a_script_is_one_transaction_and_marks_its_session(notes):
    """A script of many statements happens whole or not at all; its session is not lent again."""
    connection = await Connection.open(notes.owner)
    with pytest.raises(QueryFailed):
        await connection.script("CREATE TABLE first (n int); SELECT 1 / 0")
    await connection.script("CREATE TABLE second (n int); INSERT INTO second VALUES (1), (2)")
    assert await ask(connection, "SELECT to_regclass('first') IS NULL, count(*) FROM second") == [(True, 2)]
    assert not connection.is_clean
    connection.close()


async def test_a_cancelled_script_closes_its_session(notes):
    """Nothing of it is kept, and the server does not go on with it."""
    connection = await Connection.open(notes.owner)
    with trio.move_on_after(0.05) as scope:
        await connection.script("CREATE TABLE never (n int); SELECT pg_sleep(60)")
    assert scope.cancelled_caught
    assert connection.is_closed
    assert notes.outside("SELECT to_regclass('never')") == [(None,)]
    assert [state for _, state in notes.sessions() if state == "active"] == []


async def test_notices_are_dropped(connection, capfd):
    """libpq would print them to standard error."""
    await ask(connection, "DO $$BEGIN RAISE WARNING 'loud'; END$$")
    assert "loud" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("57014", StatementTimeout),
        ("55P03", Conflict),
        ("23505", UniqueViolation),
        ("23P01", UniqueViolation),
        ("40001", TransactionConflict),
        ("40P01", TransactionConflict),
        ("57P01", ConnectionLost),
        ("57P02", ConnectionLost),
        ("25P03", ConnectionLost),
        ("57P03", DatabaseUnavailable),
        ("53300", DatabaseUnavailable),
        ("53100", StorageFull),
        ("25006", DatabaseUnavailable),
        ("42601", QueryFailed),
        ("08P01", QueryFailed),
        ("0A000", QueryFailed),
    ],
)
def test_each_sqlstate_has_its_place_in_our_tree(sqlstate, expected):
    """The table of what a refusal means, row by row."""
    assert type(translate(lookup(sqlstate)("refused"))) is expected
