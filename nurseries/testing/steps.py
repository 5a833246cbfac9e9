"""Making a run repeatable: the scheduler's dice, and how long a database takes."""

from __future__ import annotations

import random
import select
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import trio
from trio._core import _run as scheduler

from nurseries.postgres import connecting, parking
from nurseries.postgres.exchange import Exchange
from nurseries.testing.clock import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Wait = Callable[[int], Awaitable[None]]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let `seed` decide for the body of the block in which order Trio runs its tasks, and what `random` returns.

    A seed alone does not do it: Trio must also be told to sort the tasks before it shuffles them.
    """
    before = scheduler._r.getstate(), random.getstate(), scheduler._ALLOW_DETERMINISTIC_SCHEDULING  # noqa: SLF001  # Trio has no public way
    _set_scheduler(deterministic=True)
    scheduler._r.seed(seed)  # noqa: SLF001
    random.seed(seed)
    try:
        yield
    finally:
        scheduler._r.setstate(before[0])  # noqa: SLF001
        random.setstate(before[1])
        _set_scheduler(deterministic=before[2])


def _set_scheduler(*, deterministic: bool) -> None:
    # By name: Trio declares it as a constant, which pytest-trio sets in the same way.
    setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", deterministic)  # noqa: B010


@contextmanager
def stepwise_database(*, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Make every exchange with the database one step of its task, however long the server takes.

    Otherwise the number of passes of the scheduler until an answer is there differs from run to run, and no run
    could be repeated. The whole loop waits for each answer. Two statements can still be under way at once, and one
    can be cancelled: the step lies between sending it and reading its answer.

    Args:
        patience: real seconds until a call is taken to wait for another task of this loop, which then may run.
    """

    def blocking(wait: Wait, events: int) -> Wait:
        async def block(fd: int) -> None:
            poll = select.poll()
            poll.register(fd, events)
            if not poll.poll(patience * 1000):
                await wait(fd)

        return block

    places = (
        ("readable", select.POLLIN),
        ("writable", select.POLLOUT),
        ("either", select.POLLIN | select.POLLOUT),
    )
    with ExitStack() as stack:
        for name, events in places:
            replacement = blocking(getattr(parking, name), events)
            stack.enter_context(patch.object(parking, name, replacement))
        for place, name in ((Exchange, "complete"), (connecting, "_poll_until_ready")):
            stack.enter_context(patch.object(place, name, _after_a_step(getattr(place, name))))
        yield


def _after_a_step(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(function)
    async def stepped(*args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return await function(*args)

    return stepped
