"""The connections of one role, lent for a unit of work at a time.

A lease is two things: a place within the budget (the user's limit, then the common one) and a connection.
Which connection is decided between two awaits; only opening a new one takes time. What comes back is kept only
if it is provably clean, and closed otherwise: opening another costs a few milliseconds and carries nothing over.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from nurseries import observing
from nurseries.breaker import Breaker, BreakerOpen
from nurseries.budgets import Budget, BudgetLimits, Lease
from nurseries.errors import DatabaseUnavailable, PoolExhausted
from nurseries.postgres.connection import Connection
from nurseries.postgres.occupancy import PoolLimits, PoolStatistics, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Pool", "PoolLimits", "PoolStatistics", "open_pool"]


class Pool:
    """Lends connections; see `open_pool`."""

    def __init__(self, conninfo: str, limits: PoolLimits) -> None:
        self._conninfo = conninfo
        self._limits = limits
        self._capacity = limits.size + limits.overflow
        self._budget = Budget(
            BudgetLimits(
                total=self._capacity,
                per_user=limits.per_user,
                wait_seconds=limits.wait_seconds,
                waiters=limits.waiters,
                waiters_per_user=limits.waiters_per_user,
            ),
            name="database connections",
        )
        self._connecting = Breaker(threshold=limits.breaker_threshold, cooldown=limits.breaker_cooldown)
        self._queueing = Breaker(threshold=limits.breaker_threshold, cooldown=limits.breaker_cooldown)
        self._idle: list[Connection] = []  # a stack: the one used last is the warmest
        self._lent: dict[Connection, Lease] = {}
        self._patient = trio.lowlevel.ParkingLot()
        self._opening = 0
        self._peak = 0
        self._invalidated = 0
        self._closed = False

    @asynccontextmanager
    async def lease(self, borrower: str) -> AsyncIterator[Connection]:
        """Hold a connection for the body of the block. Errors are those of `acquire`."""
        connection = await self.acquire(borrower)
        try:
            yield connection
        finally:
            self.release(connection)

    async def acquire(self, borrower: str) -> Connection:
        """Return a connection that the caller must `release`; `lease` does both.

        Args:
            borrower: the user whose limit it counts against, or the name of a service.

        Raises:
            PoolExhausted: none came free in time, or too many are waiting already.
            DatabaseUnavailable: none could be opened, or none could for a while and it is too early to try.
        """
        try:
            lease = self._budget.acquire_nowait(borrower)
        except trio.WouldBlock:
            lease = await self._queue(borrower)
        try:
            connection = self._take_idle() or await self._take_returning() or await self._open()
        except BaseException:
            self._budget.release(lease)
            raise
        self._lent[connection] = lease
        observing.taken(observing.LENT, connection, borrower)
        self._peak = max(self._peak, len(self._lent))
        return connection

    def release(self, connection: Connection) -> None:
        """Take a connection back. Synchronous, so that nothing can come between it and the next borrower."""
        lease = self._lent.pop(connection)
        observing.returned(observing.LENT, connection)
        if not connection.is_clean:
            self._discard(connection)
        elif self._closed or self._is_spare() or self._is_old(connection):
            connection.close()
        else:
            self._idle.append(connection)
        self._patient.unpark()
        self._budget.release(lease)

    def leases(self) -> tuple[Lease, ...]:
        """Return the leases of the connections that are lent, for inspection."""
        return tuple(self._lent.values())

    def statistics(self) -> PoolStatistics:
        """Return the counts at this instant."""
        budget = self._budget.statistics()
        queueing = self._queueing.statistics()
        lent = len(self._lent)
        utilization = lent / self._capacity
        return PoolStatistics(
            size=self._limits.size,
            checked_in=len(self._idle),
            checked_out=lent,
            overflow=max(0, lent + len(self._idle) - self._limits.size),
            invalidated=self._invalidated,
            waiting=budget.waiting,
            waits=budget.waits,
            timeouts=budget.timeouts,
            refused=budget.refused + queueing.refused,
            peak=self._peak,
            utilization=utilization,
            status=status_of(utilization),
            connecting=self._connecting.statistics(),
            queueing=queueing,
        )

    async def _queue(self, borrower: str) -> Lease:
        """Wait for a place within the budget, unless waiting has been in vain for all for some time."""
        try:
            admission = self._queueing.admit()
        except BreakerOpen as error:
            raise PoolExhausted(
                "all database connections are in use", retry_after=error.retry_after
            ) from error
        try:
            lease = await self._budget.acquire(borrower)
        except PoolExhausted:
            # A user who waits behind their own leases says nothing about the pool.
            if self._budget.is_full:
                admission.failed()
            else:
                admission.abandoned()
            raise
        except BaseException:
            admission.abandoned()
            raise
        admission.succeeded()
        return lease

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if self._is_old(connection):
                connection.close()
            elif connection.is_alive:
                return connection
            else:
                self._discard(connection)
        return None

    async def _take_returning(self) -> Connection | None:
        """Wait a moment for a connection to come back, if all that are kept are in use."""
        with trio.move_on_after(self._limits.patience_seconds):
            while len(self._lent) + self._opening >= self._limits.size and not self._closed:
                await self._patient.park()
                connection = self._take_idle()
                if connection is not None:
                    return connection
        return None

    async def _open(self) -> Connection:
        if self._closed:
            raise DatabaseUnavailable("the pool is closed")
        try:
            admission = self._connecting.admit()
        except BreakerOpen as error:
            raise DatabaseUnavailable(
                "the database could not be reached just now", retry_after=error.retry_after
            ) from error
        self._opening += 1
        try:
            connection = await Connection.open(self._conninfo, answer_seconds=self._limits.answer_seconds)
        except DatabaseUnavailable:
            admission.failed()
            raise
        except BaseException:
            admission.abandoned()
            raise
        finally:
            self._opening -= 1
        admission.succeeded()
        return connection

    def _discard(self, connection: Connection) -> None:
        connection.close()
        self._invalidated += 1

    def _is_spare(self) -> bool:
        """Whether a returning connection is one too many. While somebody waits it is not: they get it next."""
        others = len(self._lent) + len(self._idle)
        return others >= self._limits.size and not self._budget.is_contended and not self._patient

    def _is_old(self, connection: Connection) -> bool:
        return trio.current_time() - connection.opened_at >= self._limits.recycle_seconds

    async def _open_first(self) -> None:
        """Open the connections that are to be ready, all at the same time; the first failure ends the rest."""
        failure: DatabaseUnavailable | None = None

        async def open_one() -> None:
            nonlocal failure
            try:
                self._idle.append(await self._open())
            except DatabaseUnavailable as error:
                failure = error
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(self._limits.ready, self._limits.size)):
                nursery.start_soon(open_one)
        if failure is not None:
            raise failure

    def _close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()


@asynccontextmanager
async def open_pool(conninfo: str, limits: PoolLimits | None = None) -> AsyncIterator[Pool]:
    """Open a pool for the body of the block, and close its connections afterwards.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or refuses this role; the message says why.
    """
    pool = Pool(conninfo, limits or PoolLimits())
    try:
        await pool._open_first()  # noqa: SLF001  # the two halves of one resource
        yield pool
    finally:
        pool._close()  # noqa: SLF001  # as above
