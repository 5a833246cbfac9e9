"""One server a database: a lock that says so, held on a connection of its own.

Two servers on one database would number the same threads and end each other's runs. The lock goes with the
connection, so a server that is lost gives it up by itself; one whose database was restarted takes it again.
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
TAKE_SECONDS: Final = 15.0
RETRY_SECONDS: Final = 0.1
logger = structlog.get_logger(__name__)


class Tenancy:
    """Holds the lock while it runs."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Take the lock, then keep it until cancelled.

        Raises:
            StartupFailed: another server holds it.
        """
        connection = await self._take()
        task_status.started()
        try:
            while True:
                await trio.sleep(CHECK_SECONDS)
                try:
                    await connection.run([Statement("SELECT 1")])
                except Unavailable:
                    logger.warning("the connection that holds the database's lock was lost")
                    connection.close()
                    connection = await self._take()
        finally:
            connection.close()

    async def _take(self) -> Connection:
        """Take the lock, waiting a little: a server that was killed holds it until the database notices."""
        last: Exception | None = None
        with trio.move_on_after(TAKE_SECONDS):
            while True:
                try:
                    connection = await Connection.open(self._conninfo)
                    if await _try_lock(connection):
                        return connection
                    connection.close()
                except Unavailable as error:
                    last = error
                await trio.sleep(RETRY_SECONDS)
        raise StartupFailed("another server is using this database; stop it first") from last


async def _try_lock(connection: Connection) -> bool:
    (result,) = await connection.run([Statement("SELECT pg_try_advisory_lock($1::bigint)", (LOCK_KEY,))])
    return bool(connection.rows(result)[0][0])
