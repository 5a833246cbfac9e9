"""How many connections a pool may have, and how many it has: values only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from nurseries.breaker import BreakerStatistics

PoolStatus = Literal["healthy", "warning", "critical"]


@attrs.frozen
class PoolLimits:
    """Bounds of one pool.

    Attributes:
        size: connections that are kept.
        overflow: connections beyond these, closed as soon as nobody waits for them.
        patience_seconds: how long to wait for one of `size` to come back before one beyond them is opened:
            a new connection costs both sides more than most units of work take.
        ready: connections opened at the start; the others are opened when they are needed.
        per_user: connections of one user at once.
        wait_seconds: how long one may wait for a connection to come free.
        waiters: how many may wait at once, over all users.
        waiters_per_user: the same for one user.
        recycle_seconds: age at which a connection is replaced.
        answer_seconds: how long the database may take to answer, for each statement of a unit, before its connection
            counts as broken. More than its own `statement_timeout`, so that it can say what took too long.
        breaker_threshold: failures in a row, to connect or of waits, after which nobody tries for a while.
        breaker_cooldown: seconds until one tries again.
    """

    size: int = 20
    overflow: int = 30
    patience_seconds: float = 0.25
    ready: int = 2
    per_user: int = 5
    wait_seconds: float = 30.0
    waiters: int = 1000
    waiters_per_user: int = 100
    recycle_seconds: float = 3600.0
    answer_seconds: float = math.inf
    breaker_threshold: int = 5
    breaker_cooldown: float = 2.0


@attrs.frozen
class PoolStatistics:
    """The pool at one instant; `invalidated`, `waits`, `timeouts`, `refused` and `peak` are since the start.

    Attributes:
        size: connections that are kept.
        checked_in: open and idle.
        checked_out: lent.
        overflow: open beyond `size`.
        invalidated: closed because they were dead or not provably clean.
        waiting: tasks in the queue.
        waits: tasks that had to queue.
        timeouts: waits that ended without a connection.
        refused: waits that were refused, because the queue was full or the breaker open.
        peak: most connections lent at once.
        utilization: lent connections, as a share of `size` and overflow together.
        status: `healthy` below 75 %, `warning` from there, `critical` from 90 %.
        connecting: the breaker around opening connections.
        queueing: the breaker around waiting for one.
    """

    size: int
    checked_in: int
    checked_out: int
    overflow: int
    invalidated: int
    waiting: int
    waits: int
    timeouts: int
    refused: int
    peak: int
    utilization: float
    status: PoolStatus
    connecting: BreakerStatistics
    queueing: BreakerStatistics


def status_of(utilization: float) -> PoolStatus:
    """Return the status for a share of connections that are lent, from 0 to 1."""
    if utilization >= 0.9:
        return "critical"
    return "warning" if utilization >= 0.75 else "healthy"
