"""Cancelling at every moment: a random cancellation hardly ever meets the one line that forgot its shield.

A moment is the beginning of a step of a task, when what it waited for is there and it is about to go on, or the end
of one, when it has begun to wait. A cancellation at the beginning is seen at the next checkpoint, which may be
behind the line that took something; one at the end interrupts the wait itself. Both happen in production.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from nurseries.groups import alone
from nurseries.testing.places import name_of, place_of, standing
from nurseries.testing.steps import seeded, stepwise_database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POINTS: Final = 5_000
SECONDS: Final = 15.0
"""How long a scenario may take to end. Cleanups have 5 s, see `nurseries.cleanup`."""

_RUNS_TO_THE_END: Final = 3
"""Runs in a row that end before the point: a scenario with other sockets than the database's has no exact length."""


@attrs.frozen
class Sweep:
    """What `cancel_everywhere` has done.

    Attributes:
        points: moments at which the scenario was cancelled.
        steps: of the scenario when nothing cancels it.
        caught: at how many points it did not get to its end.
    """

    points: int
    steps: int
    caught: int

    def __str__(self) -> str:
        return f"cancelled at {self.points} points of {self.steps} steps"


async def cancel_everywhere(  # noqa: PLR0913  # scenario and invariant, and what few need, by name
    scenario: Callable[..., Awaitable[object]],
    invariant: Callable[..., Awaitable[object]] | None = None,
    *,
    prepare: Callable[[], Awaitable[Any]] | None = None,
    cancel: Callable[..., object] | None = None,
    below: Callable[..., trio.lowlevel.Task] | None = None,
    seed: int = 0,
    points: int = POINTS,
    seconds: float = SECONDS,
) -> Sweep:
    """Run `scenario` again and again, cancel it at the first, the second, ... moment, and look what is left.

    What is cancelled is a scope around the scenario, as a disconnect, a cancelled run or a shutdown cancels one.
    The moments are those of the tasks in that scope: the scenario's own and all that it starts in nurseries of its
    own. It ends by itself when a moment is beyond the scenario's end.

    Args:
        scenario: does what may be cancelled.
        invariant: looks at what is left when the scenario has ended, and raises if it should not be there.
        prepare: makes what one run needs, before it; `scenario`, `invariant`, `cancel` and `below` are called
            with it.
        cancel: synchronous; what to do at the moment instead of cancelling the scope. The scenario then has to end
            by itself.
        below: returns the task whose moments count, with those of the tasks below it, instead of the scenario's:
            for a scenario that waits while something else, which `cancel` then cancels, is at work.
        seed: of the schedule, which is the same in every run.
        points: more moments than these are taken for a scenario that never ends.
        seconds: how long one run may take before it counts as stuck.

    Raises:
        AssertionError: a run was stuck, or there are too many moments.
        BaseException: what the invariant or the scenario raised, with a note of the moment: step, task and line.
    """
    __tracebackhide__ = True
    with stepwise_database():
        run = _Run(scenario, invariant, prepare, cancel, below, seed, seconds)
        steps = (await run(None)).steps
        caught = beyond = point = 0
        while beyond < _RUNS_TO_THE_END:
            moment = await run(point)
            if not moment.reached:
                beyond += 1
                continue
            beyond = 0
            point += 1
            caught += moment.scope.cancelled_caught
            if point > points:
                raise AssertionError(f"after {points} points the scenario has not come to its end")
    return Sweep(point, steps, caught)


@attrs.frozen
class _Run:
    """One run of the scenario, cancelled at one of its moments or, for None, at none."""

    scenario: Callable[..., Awaitable[object]]
    invariant: Callable[..., Awaitable[object]] | None
    prepare: Callable[[], Awaitable[Any]] | None
    cancel: Callable[..., object] | None
    below: Callable[..., trio.lowlevel.Task] | None
    seed: int
    seconds: float

    async def __call__(self, point: int | None) -> _Moment:
        __tracebackhide__ = True
        args = () if self.prepare is None else (await self.prepare(),)
        below = None if self.below is None else self.below(*args)
        moment = _Moment(point, self._action(args), below)
        trio.lowlevel.add_instrument(moment)
        try:
            with seeded(self.seed), alone():
                await self._run(moment, args)
            if self.invariant is not None:
                await self.invariant(*args)
        except Exception as error:
            error.add_note(moment.described())
            raise
        finally:
            trio.lowlevel.remove_instrument(moment)
        return moment

    def _action(self, args: tuple[Any, ...]) -> Callable[[], object] | None:
        cancel = self.cancel
        return None if cancel is None else lambda: cancel(*args)

    async def _run(self, moment: _Moment, args: tuple[Any, ...]) -> None:
        stuck = ""

        async def run() -> None:
            await moment.run(self.scenario, args)
            nursery.cancel_scope.cancel()

        run.__qualname__ = getattr(self.scenario, "__qualname__", "scenario")  # what its task is called

        async def watch() -> None:
            nonlocal stuck
            await trio.sleep(self.seconds)
            stuck = moment.standing()
            moment.scope.cancel()
            _drop_shields(moment.scope)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(run)
        if stuck:
            raise AssertionError(f"the scenario had not ended after {self.seconds:g} s; its tasks:\n{stuck}")


class _Moment(trio.abc.Instrument):
    """Counts the moments of the tasks in one scope, and acts at one of them."""

    def __init__(
        self, point: int | None, action: Callable[[], object] | None, below: trio.lowlevel.Task | None
    ) -> None:
        self.scope = trio.CancelScope()
        self.root: trio.lowlevel.Task | None = None
        self.steps = 0
        self.reached = False
        self._action = action or self.scope.cancel
        self._below = below
        self._point = point
        self._passed = 0
        self._where = ""

    async def run(self, scenario: Callable[..., Awaitable[object]], args: tuple[Any, ...]) -> None:
        """Run the scenario in the scope, in a task of its own."""
        task = trio.lowlevel.current_task()
        self.root = self._below or task
        try:
            with self.scope:
                if self.root is task:
                    self._step(task)
                await scenario(*args)
        finally:
            self.root = None

    def standing(self) -> str:
        """Say where the tasks of the scenario are now."""
        return "" if self.root is None else standing(self.root)

    def described(self) -> str:
        """Say where the scenario was cancelled."""
        return self._where or "not cancelled at all: it fails by itself"

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._contains(task):
            self._step(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._contains(task):
            self._pass(task, "as it began to wait")

    def _step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        self._pass(task, "as it was about to go on")

    def _contains(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and self.root is not None:
            if task is self.root:
                return True
            task = None if task.parent_nursery is None else task.parent_nursery.parent_task
        return False

    def _pass(self, task: trio.lowlevel.Task, when: str) -> None:
        if self._passed == self._point:
            self.reached = True
            place = place_of(task).replace("\n", "\n    ")
            self._where = f"cancelled at point {self._point}, step {self.steps}, in task {name_of(task)}, {when}:\n    {place}"
            self._action()
        self._passed += 1


def _drop_shields(scope: trio.CancelScope) -> None:
    """Let a cancellation through to what hides from it for ever, so that a test can end and say so."""
    waiting: list[Any] = [scope._cancel_status]  # noqa: SLF001  # Trio shows scopes to those alone who are in them
    while waiting:
        status = waiting.pop()
        if status is not None:
            status._scope.shield = False  # noqa: SLF001
            waiting.extend(status._children)  # noqa: SLF001
