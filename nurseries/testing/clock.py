"""Time that passes only when nothing else is left to do, beside a real database whose answers take none of it.

Trio's own `MockClock` jumps to the next deadline as soon as every task waits, also where one of them waits for
PostgreSQL: then every timeout around a query fires at once. Here the clock stands still for as long as a database
call or a worker thread is under way. What never comes by itself (a lock that a sleeping task holds, a statement
that was cancelled on purpose) is given `patience` seconds of real time; then the next deadline is due after all.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import trio
import trio.testing

from nurseries.postgres import parking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

PATIENCE_SECONDS: Final = 2.0
"""Longer than any answer that comes by itself takes, also on a busy machine."""


class RealWaits:
    """The waits that are under way for what happens outside this loop; while there are any, the clock stands still."""

    def __init__(self, clock: trio.testing.MockClock, patience: float) -> None:
        self._clock = clock
        self._patience = patience
        self._under_way = 0

    def around(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """Return `function`, counted for as long as it runs."""

        @wraps(function)
        async def counted(*args: Any, **options: Any) -> Any:
            self._change(+1)
            try:
                return await function(*args, **options)
            finally:
                self._change(-1)

        return counted

    def _change(self, difference: int) -> None:
        self._under_way += difference
        self._clock.autojump_threshold = self._patience if self._under_way else 0.0


@contextmanager
def virtual_time(*, patience: float = PATIENCE_SECONDS) -> Iterator[trio.testing.MockClock]:
    """Yield a clock for `trio.run` that jumps to the next deadline when nothing else is left to do.

    Database calls of `nurseries.postgres` and functions in worker threads take no time on it. Other sockets are
    not watched: beside an HTTP client the clock runs away. Neither is the wall clock changed.

    Args:
        patience: real seconds that a database call may take before it counts as stuck.
    """
    clock = trio.testing.MockClock(autojump_threshold=0.0)
    waits = RealWaits(clock, patience)
    with ExitStack() as stack:
        for module, name in (
            (parking, "readable"),
            (parking, "writable"),
            (parking, "either"),
            (trio.to_thread, "run_sync"),
        ):
            stack.enter_context(patch.object(module, name, waits.around(getattr(module, name))))
        yield clock
