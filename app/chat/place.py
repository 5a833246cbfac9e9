"""A run's place among those that run, and the time that it may run."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from nurseries.budgets import Budget, BudgetLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app.chat.settings import RunSettings
    from nurseries.budgets import Lease

WAITING_RUNS: Final = 20_000
WAITING_RUNS_PER_USER: Final = 1_000


class RunPlaces:
    """The places of all runs: some to run in, and some to wait in for a person."""

    def __init__(self, settings: RunSettings) -> None:
        # Who starts more runs than these has them wait, however long: a run that waits has not failed.
        self.running = Budget(
            BudgetLimits(
                total=settings.running,
                per_user=settings.running_per_user,
                wait_seconds=math.inf,
                waiters=WAITING_RUNS,
                waiters_per_user=WAITING_RUNS_PER_USER,
            ),
            name="running runs",
        )
        # A run that waits still is a request: without a bound, open questions would take everybody's requests.
        self.asking = Budget(
            BudgetLimits(total=settings.asking, per_user=settings.asking_per_user), name="asking runs"
        )
        self.seconds = settings.seconds


class Place:
    """One run's. While the run waits for a person its time stands still, and it runs nowhere.

    Attributes:
        scope: cancels what is in it when the time is over.

    Args:
        places: of all runs.
        user_id: whose run it is.
        on_left: called when the place is left for a person.
    """

    def __init__(self, places: RunPlaces, user_id: str, on_left: Callable[[], object] = lambda: None) -> None:
        self.scope = trio.CancelScope()
        self._places = places
        self._user_id = user_id
        self._seconds = places.seconds
        self._on_left = on_left
        self._running: Lease | None = None
        self._asking: Lease | None = None
        self._taking = trio.Lock()
        self._questions = 0

    @property
    def is_left(self) -> bool:
        """Whether the run waits for a person."""
        return self._questions > 0

    async def take(self) -> None:
        """Wait for a place to run in, and let the time run."""
        async with self._taking:  # two waits of one run may end at once
            if self._running is None:
                self._running = await self._places.running.acquire(self._user_id)
            if self._asking is not None:
                self._places.asking.release(self._asking)
                self._asking = None
            if self.scope.deadline == math.inf:
                self.scope.deadline = trio.current_time() + self._seconds
        if self._questions:  # meanwhile it has begun to ask again
            self._leave()

    def give_up(self) -> None:
        """Leave every place to others. Harmless without one."""
        if self._running is not None:
            self._places.running.release(self._running)
            self._running = None
        if self._asking is not None:
            self._places.asking.release(self._asking)
            self._asking = None

    @asynccontextmanager
    async def left(self) -> AsyncIterator[None]:
        """Wait for a person in the body of the block; several blocks at once are one wait.

        Where there is no place to wait in, because so many runs do, it keeps the one that it runs in.
        """
        self._questions += 1
        self._leave()
        self._on_left()
        try:
            yield
        finally:
            self._questions -= 1
        if not self._questions:
            await self.take()

    def _leave(self) -> None:
        if self.scope.deadline < math.inf:
            self._seconds = max(0.0, self.scope.deadline - trio.current_time())
            self.scope.deadline = math.inf
        if self._running is None or self._asking is not None:
            return
        with suppress(trio.WouldBlock):
            self._asking = self._places.asking.acquire_nowait(self._user_id)
            self._places.running.release(self._running)
            self._running = None
