"""A database with one table under row-level security, and a role that is subject to it."""

from collections.abc import Iterator
from uuid import uuid4

import attrs
import psycopg
import pytest
import trio
from psycopg.conninfo import make_conninfo

from nurseries.postgres.pool import PoolLimits, open_pool

SCHEMA = """
    CREATE TABLE notes (
        note_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id text NOT NULL DEFAULT NULLIF(current_setting('app.user_id', true), ''),
        unit uuid,
        text text NOT NULL,
        tag text UNIQUE
    );
    ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
    ALTER TABLE notes FORCE ROW LEVEL SECURITY;
    CREATE POLICY own_rows ON notes USING (user_id = NULLIF(current_setting('app.user_id', true), ''));
    CREATE TABLE counters (name text PRIMARY KEY, value bigint NOT NULL);
    INSERT INTO counters VALUES ('a', 0), ('b', 0);
    CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    GRANT SELECT, INSERT, UPDATE, DELETE ON notes, counters, late TO {role};
"""


@attrs.frozen
class Notes:
    """A database of notes.

    Attributes:
        owner: connection string of the superuser.
        conninfo: connection string of the role that sees only what its user may see.
        admin: a connection of the superuser, to look from outside.
    """

    owner: str
    conninfo: str
    admin: psycopg.Connection

    def outside(self, sql, *params):
        """Return the rows of a statement that the superuser runs, who sees everything."""
        return self.admin.execute(sql, params).fetchall()

    def sessions(self):
        """Return process and state of the sessions of the role under test."""
        return self.outside(
            "SELECT pid, state FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    async def wait_running(self, sql):
        """Wait until a session is running this statement, and return its process id."""
        while True:
            found = self.outside(
                "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query = %s", sql
            )
            if found:
                return found[0][0]
            await trio.lowlevel.checkpoint()


@pytest.fixture
def notes(empty_database) -> Iterator[Notes]:
    role = f"notes_{uuid4().hex[:12]}"
    with psycopg.connect(empty_database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        try:
            admin.execute(SCHEMA.format(role=role))
            yield Notes(empty_database, make_conninfo(empty_database, user=role), admin)
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.fixture
async def pool(notes):
    """A small pool for the notes, with nothing opened yet."""
    async with open_pool(notes.conninfo, PoolLimits(size=3, overflow=2, ready=0)) as pool:
        yield pool
        assert pool.statistics().checked_out == 0
