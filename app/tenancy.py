"""One server a database: a lock that says so, held on a connection of its own.

Two servers on one database would number the same threads and end each other's runs. The lock goes with the
connection, so a server that is lost gives it up by itself; one whose database was restarted takes it again.
docs/decisions/0005-one-owner-of-a-run.md says why no other lease is needed.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from nurseries.errors import StartupFailed, Unavailable
from nurseries.postgres.connection import Connection
from nurseries.postgres.statement import Statement

LOCK_KEY: Final = 0x6E75727365727665  # "nurserve"; advisory locks are numbered
CHECK_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 10.0
"""How long the database may be silent: then the line is dead, though neither side has said so."""

TAKE_SECONDS: Final = 15.0
"""How long the lock may be another's: that of a killed server goes when the database notices its end."""

RETRY_SECONDS: Final = 0.1
logger = structlog.get_logger(__name__)


class Tenancy:
    """Holds the lock while it runs."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Take the lock, then keep it until cancelled; while the database is away, wait for it.

        Raises:
            StartupFailed: another server holds it, or at the start the database cannot be reached.
        """
        connection = await self._take(first=True)
        task_status.started()
        while True:
            try:
                await _until_lost(connection)
            finally:
                connection.close()
            logger.warning("the connection that holds the database's lock was lost; taking it again")
            connection = await self._take(first=False)

    async def _take(self, *, first: bool) -> Connection:
        deadline = trio.current_time() + TAKE_SECONDS
        while True:
            try:
                if (connection := await self._try()) is not None:
                    return connection
                failure = "another server is using this database; stop it first"
            except Unavailable as error:
                failure = f"the database cannot be used: {error}"
                if not first:  # our patience is with another server, and begins when the database is back
                    deadline = trio.current_time() + RETRY_SECONDS + TAKE_SECONDS
            if trio.current_time() > deadline:
                raise StartupFailed(failure)
            await trio.sleep(RETRY_SECONDS)

    async def _try(self) -> Connection | None:
        """Return a connection that holds the lock, None if it is another's."""
        connection = await Connection.open(self._conninfo, answer_seconds=ANSWER_SECONDS)
        locked = False
        try:
            statement = Statement("SELECT pg_try_advisory_lock($1::bigint)", (LOCK_KEY,))
            (result,) = await connection.run([statement])
            locked = bool(connection.rows(result)[0][0])
        finally:
            if not locked:
                connection.close()
        return connection if locked else None


async def _until_lost(connection: Connection) -> None:
    while True:
        await trio.sleep(CHECK_SECONDS)
        try:
            await connection.run([Statement("SELECT 1")])
        except Unavailable:
            return
