"""The owner's connection: the only one that may change the schema or the roles. It lives for a moment at start.

It holds an advisory lock of the database all the while, so that of two servers that start at once one waits.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from nurseries.errors import Conflict, NurseriesError, StartupFailed
from nurseries.postgres.connection import Connection
from nurseries.postgres.statement import Statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nurseries.postgres.statement import Row

OLDEST_POSTGRES: Final = 15  # the first with views that keep to their caller's row-level security
_LOCK_KEY: Final = 0x6E757273657269  # "nurseri"; advisory locks are numbered
_LOCK_SECONDS: Final = 60


class Owner:
    """A connection as the owner of the database.

    Attributes:
        conninfo: how it was made.
    """

    def __init__(self, conninfo: str, connection: Connection) -> None:
        self.conninfo = conninfo
        self._connection = connection

    async def fetch(self, sql: str, *params: Any) -> list[Row]:
        """Run one statement and return its rows."""
        (result,) = await self._connection.run([Statement(sql, params)], commits=True)
        return self._connection.rows(result)

    async def run(self, script: str) -> None:
        """Run a script of any number of statements, all or nothing."""
        await self._connection.script(script)


@asynccontextmanager
async def open_owner(conninfo: str) -> AsyncIterator[Owner]:
    """Connect as the owner, and keep other servers from doing the same.

    Raises:
        StartupFailed: the database cannot be reached or is too old, another server keeps it locked, or
            a statement of the body was refused.
    """
    try:
        connection = await Connection.open(conninfo)
        try:
            owner = Owner(conninfo, connection)
            await _require_version(owner)
            await _lock(owner)
            yield owner
        finally:
            connection.close()
    except StartupFailed:
        raise
    except NurseriesError as error:
        raise StartupFailed(f"the database cannot be used: {error}") from error


async def _require_version(owner: Owner) -> None:
    [(version,)] = await owner.fetch("SELECT current_setting('server_version_num')::int / 10000")
    if version < OLDEST_POSTGRES:
        raise StartupFailed(f"the database is PostgreSQL {version}; {OLDEST_POSTGRES} or newer is needed")


async def _lock(owner: Owner) -> None:
    """Lock the database for as long as the connection lives."""
    await owner.fetch("SELECT set_config('lock_timeout', $1, false)", f"{_LOCK_SECONDS}s")
    try:
        await owner.fetch("SELECT pg_advisory_lock($1)", _LOCK_KEY)
    except Conflict:
        raise StartupFailed(f"another server has been changing the database for {_LOCK_SECONDS} s") from None
