"""Migrations: once, whole, in order, by one server at a time, and never over an unknown history."""

import attrs
import psycopg
import pytest
import trio

from app.store.migrate import Migration, load_migrations, migrate
from app.store.owner import open_owner
from nurseries.errors import StartupFailed

FIRST = Migration("0001_first.sql", "CREATE TABLE first (n int); -- the first")
SECOND = Migration("0002_second.sql", "CREATE TABLE second (n int); INSERT INTO first VALUES (2)")
BROKEN = Migration("0002_broken.sql", "CREATE TABLE second (n int); SELECT 1 / 0")


def tables(conninfo):
    with psycopg.connect(conninfo) as connection:
        return {
            row[0]
            for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        }


async def apply(conninfo, migrations=None):
    async with open_owner(conninfo) as owner:
        return await migrate(owner, migrations)


async def test_a_new_database_gets_every_migration_once(empty_database):
    """The first start applies all files of the release in order, and the next start none."""
    names = [migration.name for migration in load_migrations()]
    assert names == sorted(names)
    assert names[0] == "0001_roles.sql"
    assert await apply(empty_database) == names
    assert {"users", "threads", "events", "secrets", "schema_migrations"} <= tables(empty_database)
    assert await apply(empty_database) == []


async def test_a_later_release_applies_what_is_new(empty_database):
    """Of a longer list only the tail is applied."""
    assert await apply(empty_database, [FIRST]) == [FIRST.name]
    assert await apply(empty_database, [FIRST, SECOND]) == [SECOND.name]
    assert tables(empty_database) == {"first", "second", "schema_migrations"}


async def test_two_servers_that_start_at_once(empty_database):
    """One waits for the other, and everything is applied once."""
    applied = []

    async def start():
        applied.extend(await apply(empty_database))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(start)
    assert applied == [migration.name for migration in load_migrations()]


async def test_a_migration_that_fails_leaves_nothing_of_itself(empty_database):
    """Each is a transaction: what came before stays, of the broken one there is no trace, and it can be mended."""
    with pytest.raises(StartupFailed, match=r"0002_broken\.sql failed: division by zero"):
        await apply(empty_database, [FIRST, BROKEN])
    assert tables(empty_database) == {"first", "schema_migrations"}
    assert await apply(empty_database, [FIRST, SECOND]) == [SECOND.name]


async def test_a_changed_migration_stops_the_start(empty_database):
    """A file that is not what was applied is named, whatever comes after it."""
    await apply(empty_database, [FIRST])
    tampered = attrs.evolve(FIRST, sql=FIRST.sql + " -- only a word more")
    with pytest.raises(StartupFailed, match=r"0001_first\.sql was changed"):
        await apply(empty_database, [tampered, SECOND])
    assert "second" not in tables(empty_database)


async def test_a_newer_database_stops_the_start(empty_database):
    """An old server does not touch what a newer one has made."""
    await apply(empty_database, [FIRST, SECOND])
    with pytest.raises(StartupFailed, match=r"newer than this server.*0002_second.sql"):
        await apply(empty_database, [FIRST])


async def test_a_migration_that_comes_too_late_stops_the_start(empty_database):
    """A number below those that are applied would give two databases two histories."""
    await apply(empty_database, [FIRST, SECOND])
    between = Migration("0001_in_between.sql", "CREATE TABLE late (n int)")
    with pytest.raises(StartupFailed, match=r"belongs before 0002_second\.sql"):
        await apply(empty_database, [FIRST, between, SECOND])
    assert "late" not in tables(empty_database)


async def test_a_database_that_is_not_there():
    """The start fails with the reason, and not with the database library's own exception."""
    with pytest.raises(StartupFailed, match="No such file or directory"):
        await apply("host=/nonexistent dbname=none")
