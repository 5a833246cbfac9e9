"""Parameters and rows on the wire, and what a statement may leave behind."""

from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from uuid import uuid4

import pytest

from nurseries.postgres.scoped import Database, ScopedDatabase
from nurseries.postgres.statement import encode, leaves_no_trace, only_reads


class Color(StrEnum):
    RED = "red"


MOMENT = datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=UTC)
ID = str(uuid4())


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("text", "Grüße, 世界 \N{PILE OF POO} \\ ' \" {}"),
        ("text", ""),
        ("text", Color.RED),
        ("bigint", -(2**63)),
        ("int", 7),
        ("float8", 0.1),
        ("float8", float("inf")),
        ("bool", True),
        ("bool", False),
        ("uuid", ID),
        ("bytea", bytes(range(256))),
        ("bytea", b""),
        ("timestamptz", MOMENT),
        ("text[]", ["a", 'quote " and \\ and , and {}', "", "NULL", None, "ü"]),
        ("text[]", []),
        ("text[]", [["a", "b"], ["c", "d"]]),
        ("bigint[]", [1, None, 2**62]),
        ("bool[]", [True, False]),
        ("float8[]", [0.5, -1.25]),
        ("uuid[]", [ID, None]),
        ("timestamptz[]", [MOMENT, None]),
        ("bytea[]", [b'\0\\"', b""]),
    ],
)
async def test_a_value_comes_back_as_it_went(pool, type_name, value):
    """Each type that a parameter may have survives the way to the server and back, and so does NULL."""
    db = Database(pool, borrower="test")
    assert await db.fetch_one(f"SELECT $1::{type_name}, $2::{type_name}", value, None) == (value, None)


async def test_moments_of_other_zones_are_the_same_moment_in_utc(pool):
    """A time comes back in UTC, whatever the zone it was given in."""
    east = datetime(2026, 3, 1, 1, 0, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    (row,) = await Database(pool, borrower="test").fetch("SELECT $1::timestamptz", east)
    assert row[0] == east
    assert row[0].utcoffset() == timedelta(0)


async def test_jsonb_goes_in_as_text_and_comes_out_as_objects(pool):
    """JSON is encoded by whoever has it, and decoded for whoever reads it."""
    row = await Database(pool, borrower="test").fetch_one("SELECT $1::jsonb", '{"a": [1, 2.5, null, "ü"]}')
    assert row == ({"a": [1, 2.5, None, "ü"]},)


async def test_rows_can_be_inserted_from_arrays(pool):
    """Many rows are one statement with one array for each column."""
    db = ScopedDatabase(pool, "ann")
    sql = "INSERT INTO notes (text, unit) SELECT * FROM unnest($1::text[], $2::uuid[])"
    assert await db.execute(sql, ["one", "two"], [ID, None]) == 2
    assert await db.fetch("SELECT text, unit FROM notes ORDER BY note_id") == [("one", ID), ("two", None)]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("nul \0 inside", ValueError),
        (["fine", "nul \0"], ValueError),
        ("\ud800", ValueError),
        (MOMENT.replace(tzinfo=None), TypeError),
        ({"a": 1}, TypeError),
        (object(), TypeError),
        ([object()], TypeError),
    ],
)
async def test_what_cannot_be_a_parameter_is_refused_before_anything_is_sent(pool, value, error):
    """The connection is not touched by a parameter that has no form on the wire, and goes on being used."""
    db = Database(pool, borrower="test")
    before = await db.fetch("SELECT pg_backend_pid()")
    with pytest.raises(error):
        await db.fetch("SELECT $1::text", value)
    assert await db.fetch("SELECT pg_backend_pid()") == before


def test_only_bytes_travel_in_binary():
    """A format is named for the parameters only where one of them is not text."""
    assert encode(("a", 1)) == ([b"a", b"1"], None)
    assert encode(("a", b"\0", None)) == ([b"a", b"\0", None], [0, 1, 0])


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1", "  select 1", "-- why\nSELECT 1", "/* a */ (SELECT 1) UNION (SELECT 2)", "VALUES (1)",
        "WITH x AS (SELECT 1) SELECT * FROM x", "INSERT INTO t VALUES (1)", "update t set a = 1", "DELETE FROM t",
        "SELECT set_config('app.user_id', $1, true)", "SELECT pg_advisory_xact_lock(1)", "BEGIN", "COMMIT",
    ],
)  # fmt: skip
def test_plain_statements_leave_no_trace(sql):
    """A connection that ran only these is lent again."""
    assert leaves_no_trace(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SET app.user_id = 'x'", "set session characteristics as transaction read only", "RESET ALL", "LISTEN x",
        "SELECT set_config('app.user_id', 'x', false)", "SELECT set_config('a', f(1, true), false)",
        "SELECT pg_advisory_lock(1)", "SELECT pg_try_advisory_lock_shared(1)", "CREATE TEMP TABLE t (a int)",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "PREPARE p AS SELECT 1", "DO $$BEGIN END$$", "CALL f()",
        "LOAD 'x'", "DISCARD TEMP", "-- SELECT\nSET ROLE x", "",
    ],
)  # fmt: skip
def test_everything_else_is_taken_to_leave_one(sql):
    """A connection that ran one of these is closed when it comes back."""
    assert not leaves_no_trace(sql)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", True),
        ("/* x */ values (1)", True),
        ("WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x", False),
        ("UPDATE t SET a = 1", False),
        ("SELECT set_config('a', 'b', false)", False),
    ],
)
def test_only_queries_are_known_to_be_harmless_twice(sql, expected):
    """What may have written is never taken for a mere question."""
    assert only_reads(sql) is expected
