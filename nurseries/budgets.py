"""Who may hold how much: a user's own limit first, then the limit that all share.

A greedy user therefore waits in their own queue, and stands in the common one with at most `per_user`
places. Every acquisition is a fresh `Lease`, because `trio.CapacityLimiter` keeps its borrowers in a set:
two waiters that shared one borrower would both get in while it counted one.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from nurseries import observing
from nurseries.errors import PoolExhausted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@attrs.frozen
class BudgetLimits:
    """Bounds of one budget.

    Attributes:
        total: leases out at once, over all users.
        per_user: leases out at once, for one user.
        wait_seconds: how long one may wait for both limits together.
        waiters: how many may wait at once, over all users; the next one is refused at once.
        waiters_per_user: the same for one user, so that one user cannot take all places in the queue.
    """

    total: int = 50
    per_user: int = 5
    wait_seconds: float = 30.0
    waiters: int = 1000
    waiters_per_user: int = 100


@attrs.frozen
class BudgetStatistics:
    """Counts at one instant, but for `waits`, `timeouts`, `refused` and `peak`, which are since the start."""

    total: int
    in_use: int
    peak: int
    waiting: int
    waits: int
    users: int
    timeouts: int
    refused: int


@attrs.define(eq=False)
class Lease:
    """One acquisition. Its identity is the borrower in both limiters."""

    user_id: str


@attrs.define(eq=False)
class _UserShare:
    """One user's limiter, kept while anybody holds or awaits a lease of that user."""

    limiter: trio.CapacityLimiter
    leases: int = 0
    waiting: int = 0


class Budget:
    """Leases within `BudgetLimits`."""

    def __init__(self, limits: BudgetLimits, *, name: str = "budget") -> None:
        self._limits = limits
        self._name = name
        self._global = trio.CapacityLimiter(limits.total)
        self._users: dict[str, _UserShare] = {}
        self._leases: set[Lease] = set()
        self._waiting = 0
        self._contenders = 0
        self._peak = 0
        self._waits = 0
        self._timeouts = 0
        self._refused = 0

    @asynccontextmanager
    async def lease(self, user_id: str) -> AsyncIterator[Lease]:
        """Hold one lease of `user_id` for the body of the block.

        Raises:
            PoolExhausted: no lease came free in `wait_seconds`, or too many wait already.
        """
        lease = await self.acquire(user_id)
        try:
            yield lease
        finally:
            self.release(lease)

    async def acquire(self, user_id: str) -> Lease:
        """Return a lease that the caller must `release`; `lease()` does both."""
        try:
            return self.acquire_nowait(user_id)
        except trio.WouldBlock:
            pass
        share = self._share(user_id)
        if self._waiting >= self._limits.waiters or share.waiting >= self._limits.waiters_per_user:
            self._refused += 1
            self._forget_if_unused(share, user_id)
            raise PoolExhausted(f"{self._name}: too many are waiting already")
        lease = Lease(user_id)
        self._waits += 1
        self._waiting += 1
        share.waiting += 1
        try:
            with trio.move_on_after(self._limits.wait_seconds) as scope:
                await self._acquire_both(share, lease)
                return self._hold(share, lease)
        finally:
            self._waiting -= 1
            share.waiting -= 1
            self._forget_if_unused(share, user_id)
        assert scope.cancelled_caught
        self._timeouts += 1
        raise PoolExhausted(f"{self._name}: nothing came free in {self._limits.wait_seconds:g} s")

    def acquire_nowait(self, user_id: str) -> Lease:
        """Return a lease if one is free for this user and nobody waits for it. It costs no pass of the scheduler.

        Raises:
            trio.WouldBlock: none is.
        """
        share = self._share(user_id)
        lease = Lease(user_id)
        try:
            share.limiter.acquire_on_behalf_of_nowait(lease)
            try:
                self._global.acquire_on_behalf_of_nowait(lease)
            except trio.WouldBlock:
                share.limiter.release_on_behalf_of(lease)
                raise
        except trio.WouldBlock:
            self._forget_if_unused(share, user_id)
            raise
        return self._hold(share, lease)

    def release(self, lease: Lease) -> None:
        """Give a lease back. The next waiter is woken; synchronous, so it cannot be interrupted."""
        self._leases.remove(lease)
        observing.returned(self._name, lease)
        share = self._users[lease.user_id]
        share.leases -= 1
        self._global.release_on_behalf_of(lease)
        share.limiter.release_on_behalf_of(lease)
        self._forget_if_unused(share, lease.user_id)

    @property
    def is_full(self) -> bool:
        """Whether the limit that all share is reached."""
        return len(self._leases) >= self._limits.total

    @property
    def is_contended(self) -> bool:
        """Whether somebody waits for the limit that all share, rather than for their own."""
        return self._contenders > 0

    def statistics(self) -> BudgetStatistics:
        """Return the counts at this instant."""
        return BudgetStatistics(
            total=self._limits.total,
            in_use=len(self._leases),
            peak=self._peak,
            waiting=self._waiting,
            waits=self._waits,
            users=len(self._users),
            timeouts=self._timeouts,
            refused=self._refused,
        )

    def leases(self) -> tuple[Lease, ...]:
        """Return the leases that are out, for inspection."""
        return tuple(self._leases)

    def _share(self, user_id: str) -> _UserShare:
        share = self._users.get(user_id)
        if share is None:
            share = self._users[user_id] = _UserShare(trio.CapacityLimiter(self._limits.per_user))
        return share

    def _forget_if_unused(self, share: _UserShare, user_id: str) -> None:
        if not share.leases and not share.waiting:
            del self._users[user_id]

    def _hold(self, share: _UserShare, lease: Lease) -> Lease:
        share.leases += 1
        self._leases.add(lease)
        observing.taken(self._name, lease, lease.user_id)
        self._peak = max(self._peak, len(self._leases))
        return lease

    async def _acquire_both(self, share: _UserShare, lease: Lease) -> None:
        await share.limiter.acquire_on_behalf_of(lease)
        self._contenders += 1
        try:
            await self._global.acquire_on_behalf_of(lease)
        except BaseException:
            share.limiter.release_on_behalf_of(lease)
            raise
        finally:
            self._contenders -= 1
