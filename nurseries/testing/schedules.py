"""One test under many schedules: the order in which Trio runs tasks that could all run is part of no promise."""

from __future__ import annotations

import gc
import hashlib
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from nurseries.testing.clock import PATIENCE_SECONDS, virtual_time
from nurseries.testing.places import name_of, standing
from nurseries.testing.steps import seeded, stepwise_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

SCHEDULES: Final = 100
_IDLE_PASSES: Final = 5
"""Passes of the scheduler with nothing in them after which nothing will ever happen; Trio's own helpers need two."""


class Deadlock(AssertionError):
    """Every task waits for another one, and no deadline would wake any of them."""


@attrs.frozen
class Trace:
    """One run of a test.

    Attributes:
        seed: decides the schedule.
        steps: the tasks in the order in which they were stepped, each as its number, in the order in which
            tasks were started, and the name of its function.
    """

    seed: int
    steps: tuple[str, ...] = attrs.field(repr=False)

    @property
    def digest(self) -> str:
        """16 hex digits that are the same for the same steps."""
        return hashlib.sha256("\n".join(self.steps).encode()).hexdigest()[:16]


@attrs.frozen
class Exploration:
    """What `explore` has run.

    Attributes:
        digests: by seed, that of the trace.
        steps: over all schedules.
    """

    digests: dict[int, str] = attrs.field(repr=False)
    steps: int

    def __str__(self) -> str:
        distinct = len(set(self.digests.values()))
        return f"{len(self.digests)} schedules, {distinct} of them different, {self.steps} steps"


def explore(
    test: Callable[..., Awaitable[object]],
    *args: Any,
    schedules: int = SCHEDULES,
    seed: int | None = None,
    patience: float = PATIENCE_SECONDS,
) -> Exploration:
    """Run an async function under many schedules, each decided by a seed: 0, 1, 2, ...

    Each is a run of Trio of its own, in virtual time, with the cyclic collector at rest, and with each exchange
    with the database as one step, so that a seed always gives the same steps. What else happens outside this loop
    (worker threads, other sockets, other processes) breaks that; keep it out.

    Args:
        test: its assertions say what must hold.
        args: it is called with these.
        schedules: how many seeds.
        seed: run only this one.
        patience: real seconds until a database call is taken to wait for another task of the test.

    Raises:
        RuntimeError: it was called from an async function.
        Deadlock: in one of them nothing could go on.
        BaseException: what the test raised, with a note of the seed that replays it.
    """
    __tracebackhide__ = True
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("each schedule is a run of Trio of its own: call it from a test that is not async")
    seeds = range(schedules) if seed is None else [seed]
    digests: dict[int, str] = {}
    steps = 0
    for one in seeds:
        try:
            trace = replay(test, *args, seed=one, patience=patience)
        except BaseException as error:
            error.add_note(
                f"under schedule {one} of {len(seeds)}; --schedule-seed={one} replays exactly this one"
            )
            raise
        digests[one] = trace.digest
        steps += len(trace.steps)
    return Exploration(digests, steps)


def replay(
    test: Callable[..., Awaitable[object]], *args: Any, seed: int, patience: float = PATIENCE_SECONDS
) -> Trace:
    """Run an async function under one schedule and return the steps it took. Arguments are those of `explore`."""
    __tracebackhide__ = True
    watch = _Watch()

    async def run() -> None:
        __tracebackhide__ = True
        watch.main = trio.lowlevel.current_task()
        with watch.scope:
            await test(*args)
        if watch.deadlock:
            raise Deadlock(watch.deadlock)

    with (
        seeded(seed),
        virtual_time(patience=patience) as clock,
        stepwise_database(patience=patience),
        _collector_at_rest(),
    ):
        trio.run(run, clock=clock, instruments=[watch])
    return Trace(seed, tuple(watch.steps))


class _Watch(trio.abc.Instrument):
    """Writes down which task is stepped, and ends a run in which none will be any more."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.main: trio.lowlevel.Task | None = None
        self.steps: list[str] = []
        self.deadlock = ""
        self._numbers: dict[trio.lowlevel.Task, int] = {}
        self._started = 0
        self._idle_passes = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self._numbers[task] = self._started
        self._started += 1

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._numbers.pop(task, None)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._idle_passes = 0
        self.steps.append(f"{self._numbers.get(task, 0)} {name_of(task)}")

    def before_io_wait(self, timeout: float) -> None:
        self._idle_passes += 1
        if timeout or self.deadlock or self.main is None or self._idle_passes < _IDLE_PASSES:
            return
        if _nothing_comes():
            self.deadlock = "every task waits for another one:\n" + standing(self.main)
            self.scope.cancel()


def _nothing_comes() -> bool:
    """Say whether neither a deadline, nor a socket, nor another thread can wake any task."""
    statistics = trio.lowlevel.current_statistics()
    io: Any = statistics.io_statistics
    sockets = io.tasks_waiting_read + io.tasks_waiting_write
    return (
        not statistics.tasks_runnable
        and not statistics.run_sync_soon_queue_size
        and math.isinf(statistics.seconds_to_next_deadline)
        and sockets <= 1  # Trio's own, for signals and threads
    )


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Keep the cyclic collector from running finalizers at moments of its own choice."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
