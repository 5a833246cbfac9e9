"""Databases bound to whom they act for. Every unit of work tells the server so in the round trip it makes anyway.

    rows = await db.fetch("SELECT title FROM threads WHERE thread_id = $1", thread_id)
    results = await db.batch([Statement(...), Statement(...)])       # all or nothing, one round trip
    async with db.transaction() as tx: ...                           # where one statement needs another's answer

A connection is leased for the unit of work and given back at its end; no unit waits for anything else.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from nurseries.errors import RequestEnded
from nurseries.postgres.failures import ConnectionLost, DatabaseSilent, TransactionConflict
from nurseries.postgres.statement import Row, Statement
from nurseries.postgres.transaction import Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from typing import TypeVar

    from psycopg.pq.abc import PGresult

    from nurseries.postgres.connection import Connection
    from nurseries.postgres.pool import Pool

    T = TypeVar("T")

__all__ = ["Database", "Row", "ScopedDatabase", "Statement", "Transaction"]

_SET_USER: Final = "SELECT set_config('app.user_id', $1, true)"  # true: for this transaction only
_TRIES: Final = 3
_BACKOFF_SECONDS: Final = 0.02


class Database:
    """A database for one of our services, which acts for no user: policies that ask for one show it nothing.

    It says so explicitly in every transaction, so that not even a setting left in the session could speak for
    somebody. What a service may see is up to the role its pool logs in with.
    """

    def __init__(self, pool: Pool, *, borrower: str) -> None:
        self._pool = pool
        self._borrower = borrower
        self._identity = Statement(_SET_USER, ("",))
        self._ended = False

    async def fetch(self, sql: str, *params: Any) -> list[Row]:
        """Run one statement in a transaction of its own and return its rows.

        Raises:
            Unavailable: no connection (`PoolExhausted`, `DatabaseUnavailable`).
            Conflict: a lock, a unique key, or another transaction was in the way.
            Fault: `StatementTimeout`, `OutcomeUnknown`, `QueryFailed`.
        """
        (rows,) = await self._unit([Statement(sql, params)], _rows)
        return rows

    async def fetch_one(self, sql: str, *params: Any) -> Row | None:
        """Like `fetch`, for a statement that returns one row or none."""
        rows = await self.fetch(sql, *params)
        return rows[0] if rows else None

    async def execute(self, sql: str, *params: Any) -> int:
        """Like `fetch`, for a statement whose number of affected rows is what matters."""
        (count,) = await self._unit([Statement(sql, params)], _count)
        return count

    async def batch(self, statements: Sequence[Statement]) -> list[list[Row]]:
        """Run statements in one transaction and one round trip; return the rows of each. All happen, or none."""
        return await self._unit(statements, _rows)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Hold one transaction for the body: committed at its end, rolled back if it raises.

        Nothing is sent before the first statement. COMMIT is shielded from cancellation once it is sent.

        Raises:
            OutcomeUnknown: COMMIT was not answered. Look the outcome up.
            TransactionConflict: rolled back because of others; `retrying` runs such a body again.
        """
        async with self._lender().lease(self._borrower) as connection:
            transaction = Transaction(connection, self._identity)
            try:
                yield transaction
            except BaseException:
                await transaction.roll_back()
                raise
            await transaction.commit()

    async def retrying(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `work` in a transaction, and again, at most three times in all, if others made it fail.

        Raises:
            TransactionConflict: it failed three times.
        """
        for attempt in range(1, _TRIES):
            try:
                async with self.transaction() as transaction:
                    return await work(transaction)
            except TransactionConflict:
                await _back_off(attempt)
        async with self.transaction() as transaction:
            return await work(transaction)

    async def _unit(
        self, statements: Sequence[Statement], read: Callable[[Connection, PGresult], T]
    ) -> list[T]:
        """Run statements as one unit; again, at most three times in all, where surely nothing was committed."""
        attempt = 1
        while True:
            pool = self._lender()
            connection = await pool.acquire(self._borrower)
            try:
                results = await connection.run(statements, preamble=(self._identity,), commits=True)
                return [read(connection, result) for result in results]
            except DatabaseSilent:
                raise  # they have waited long enough
            except (TransactionConflict, ConnectionLost):
                if attempt == _TRIES:
                    raise
            finally:
                pool.release(connection)
            await _back_off(attempt)
            attempt += 1

    def _lender(self) -> Pool:
        if self._ended:
            raise RequestEnded(f"the request of {self._borrower} has ended, and its database with it")
        return self._pool


class ScopedDatabase(Database):
    """A database that acts for one user: row-level security shows it that user's rows and takes no others."""

    def __init__(self, pool: Pool, user_id: str) -> None:
        if not user_id:
            raise ValueError("a scoped database needs a user")
        super().__init__(pool, borrower=user_id)
        self._identity = Statement(_SET_USER, (user_id,))

    def close(self) -> None:
        """Refuse everything from now on: the request that this was made for has ended."""
        self._ended = True


async def _back_off(attempt: int) -> None:
    """Wait a random time, longer at each attempt, so that two that met do not meet again."""
    await trio.sleep(random.uniform(0.5, 1.5) * _BACKOFF_SECONDS * 2**attempt)  # noqa: S311  # not a secret


def _rows(connection: Connection, result: PGresult) -> list[Row]:
    return connection.rows(result)


def _count(_connection: Connection, result: PGresult) -> int:
    return result.command_tuples or 0
