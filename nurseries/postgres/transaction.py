"""One transaction block, for work in which one statement needs the answer of another."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import trio

from nurseries.errors import NurseriesError
from nurseries.postgres.failures import ConnectionLost, QueryFailed
from nurseries.postgres.statement import Row, Statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.pq.abc import PGresult

    from nurseries.postgres.connection import Connection

logger = logging.getLogger(__name__)

_BEGIN: Final = Statement("BEGIN")
_COMMIT: Final = Statement("COMMIT")
_ROLLBACK: Final = Statement("ROLLBACK")


class Transaction:
    """What `Database.transaction` yields. Statements are sent one by one; `batch` sends several at once."""

    def __init__(self, connection: Connection, identity: Statement) -> None:
        self._connection = connection
        self._identity = identity
        self._begun = False
        self._ended = False

    async def fetch(self, sql: str, *params: Any) -> list[Row]:
        """Run one statement and return its rows. Errors are those of `Database.fetch`."""
        (result,) = await self._run((Statement(sql, params),))
        return self._connection.rows(result)

    async def fetch_one(self, sql: str, *params: Any) -> Row | None:
        """Like `fetch`, for a statement that returns one row or none."""
        rows = await self.fetch(sql, *params)
        return rows[0] if rows else None

    async def execute(self, sql: str, *params: Any) -> int:
        """Run one statement and return the number of rows it affected."""
        (result,) = await self._run((Statement(sql, params),))
        return result.command_tuples or 0

    async def batch(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run statements in one round trip and return the rows of each."""
        return [self._connection.rows(result) for result in await self._run(statements)]

    async def _run(self, statements: Sequence[Statement]) -> list[PGresult]:
        if self._ended:
            raise trio.ClosedResourceError("this transaction is over")
        # BEGIN and the identity travel with the first statement: no round trip of their own.
        preamble = () if self._begun else (_BEGIN, self._identity)
        self._begun = True
        return await self._connection.run(statements, preamble=preamble)

    async def commit(self) -> None:
        """End the block by COMMIT (`Database.transaction` does)."""
        self._ended = True
        if not self._begun:
            return
        connection = self._connection
        try:
            await trio.lowlevel.checkpoint_if_cancelled()  # the last exit before COMMIT is sent
        except BaseException:
            await self.roll_back()
            raise
        if connection.has_failed:
            await self.roll_back()
            raise QueryFailed("a statement failed in this transaction, so nothing of it can be committed")
        if not connection.is_alive:  # it said farewell before it was told to commit: surely rolled back
            connection.close()
            raise ConnectionLost("the connection broke inside a transaction")
        await connection.conclude_transaction(_COMMIT)

    async def roll_back(self) -> None:
        """End the block by ROLLBACK. Never raises: a connection that does not answer is closed."""
        self._ended = True
        connection = self._connection
        if connection.is_closed or not connection.in_transaction:
            return
        try:
            await connection.conclude_transaction(_ROLLBACK)
        except NurseriesError as error:
            logger.warning("ROLLBACK failed, the connection is closed: %s", error)
            connection.close()
