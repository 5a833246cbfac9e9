"""One server a database."""

import psycopg
import pytest
import trio
from structlog.testing import capture_logs

from app.tenancy import LOCK_KEY, Tenancy
from nurseries.errors import StartupFailed
from tests.fixtures.postgres_proxy import proxied

HOLDER = """SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = %s)"""


@pytest.fixture
def owner(database):
    with psycopg.connect(database.owner, autocommit=True) as connection:
        yield connection


async def holder(admin: psycopg.Connection, database: str, *, besides: int = 0) -> int:
    """Wait until somebody holds the lock; returns the process id of the connection."""
    with trio.fail_after(30):
        while True:
            for (pid,) in admin.execute(HOLDER, [database]).fetchall():
                if pid != besides:
                    return pid
            await trio.lowlevel.checkpoint()


async def test_lock_of_another_server(database, owner, monkeypatch):
    """A server does not start where another one serves."""
    monkeypatch.setattr("app.tenancy.TAKE_SECONDS", 0)
    owner.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
    with pytest.RaisesGroup(
        pytest.RaisesExc(StartupFailed, match="another server is using"), flatten_subgroups=True
    ):
        async with trio.open_nursery() as nursery:
            await nursery.start(Tenancy(database.journal).run)


async def test_no_database(monkeypatch):
    """At the start a database that cannot be reached is said to be that, and not another server's."""
    monkeypatch.setattr("app.tenancy.TAKE_SECONDS", 0)
    with pytest.RaisesGroup(pytest.RaisesExc(StartupFailed, match="cannot be used"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            await nursery.start(Tenancy("host=127.0.0.1 port=1").run)


async def test_a_database_that_says_nothing(database, monkeypatch):
    """One that lets a server in and then hangs does not keep it starting for ever."""
    monkeypatch.setattr("app.tenancy.TAKE_SECONDS", 0)
    monkeypatch.setattr("app.tenancy.ANSWER_SECONDS", 0.05)
    async with proxied(database.journal) as (proxy, conninfo):
        proxy.silent_after = b"pg_try_advisory_lock"
        with pytest.RaisesGroup(
            pytest.RaisesExc(StartupFailed, match="did not answer in 0.05 seconds"), flatten_subgroups=True
        ):
            async with trio.open_nursery() as nursery:
                await nursery.start(Tenancy(conninfo).run)


async def test_database_away(cluster, database, owner, monkeypatch):
    """While the database is away the server waits for it, however long it takes, and then takes the lock again."""
    monkeypatch.setattr("app.tenancy.TAKE_SECONDS", 0)
    monkeypatch.setattr("app.tenancy.RETRY_SECONDS", 0.001)
    monkeypatch.setattr("app.tenancy.CHECK_SECONDS", 0)
    name = owner.info.dbname
    with capture_logs() as lines:
        async with trio.open_nursery() as nursery:
            await nursery.start(Tenancy(database.journal).run)
            first = await holder(cluster.admin, name)
            owner.close()
            cluster.admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            cluster.admin.execute("SELECT pg_terminate_backend(%s, 5000)", [first])
            with trio.fail_after(30):
                while not lines:
                    await trio.lowlevel.checkpoint()
            for _ in range(100):  # it tries and fails meanwhile
                await trio.lowlevel.checkpoint()
            cluster.admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            await holder(cluster.admin, name, besides=first)
            nursery.cancel_scope.cancel()
    assert len(lines) == 1


async def test_a_line_that_has_gone_dead(cluster, database, owner, monkeypatch):
    """A database that says nothing any more is one that is lost: the lock is given up, and taken again by a line that works."""
    monkeypatch.setattr("app.tenancy.ANSWER_SECONDS", 0.05)
    monkeypatch.setattr("app.tenancy.RETRY_SECONDS", 0.001)
    monkeypatch.setattr("app.tenancy.CHECK_SECONDS", 0)
    with capture_logs() as lines:
        async with proxied(database.journal) as (proxy, conninfo), trio.open_nursery() as nursery:
            proxy.silent_after = b"SELECT 1"
            await nursery.start(Tenancy(conninfo).run)
            first = await holder(cluster.admin, owner.info.dbname)
            with trio.fail_after(30):
                while not lines:
                    await trio.lowlevel.checkpoint()
            proxy.silent_after = None
            await holder(cluster.admin, owner.info.dbname, besides=first)
            nursery.cancel_scope.cancel()
    assert lines[0]["event"].startswith("the connection that holds the database's lock was lost")
