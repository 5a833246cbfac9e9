"""Looking for leaks: what outlives its owner, contexts that nobody lets go, memory that only grows.

The baseline of memory is what the server takes after its first round, when it is warm, and anew whenever more is
open than ever before: more users take more, and that is no leak. What grows beyond it while no more is open is
one, if it is more than a tenth and more than `FLOOR_BYTES`; below that, Python's memory breathes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import structlog
import trio

from nurseries.inspect import Orphan, find_orphans, kept_contexts, live_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from app.chat.runs import Runs
    from nurseries.events import Streams
    from nurseries.request import Kernel
    from nurseries.server import Server

GROWTH: Final = 0.10
"""What the memory may grow over its baseline before that is a warning."""

FLOOR_BYTES: Final = 64 * 1024 * 1024
"""What it may grow in any case."""

SHOWN: Final = 20
"""Orphans that are named; all are counted."""

logger = structlog.get_logger(__name__)


@attrs.frozen
class Baseline:
    """Memory to compare with, and how much was open then: sockets, requests, runs and listeners."""

    rss_bytes: int
    open: int


@attrs.frozen
class Round:
    """What the janitor saw when it last came by.

    Attributes:
        created_per_second: contexts, since the round before.
        released_per_second: the same of those that nobody refers to any more.
        rss_bytes: memory.
        growth: of the memory over the baseline: 0.1 stands for a tenth.
        growing: whether that is a warning.
        orphans: how many there were.
    """

    created_per_second: float
    released_per_second: float
    rss_bytes: int
    growth: float
    growing: bool
    orphans: int


@attrs.define(eq=False)
class _Counted:
    """How many contexts there had been at the round before, and when that was."""

    at: float
    created: int
    released: int


class Leaks:
    """Looks for leaks in one server.

    Args:
        kernel, server, streams, runs: where they would be.
        memory: returns this process's memory in bytes.
    """

    def __init__(
        self, kernel: Kernel, server: Server, streams: Streams, runs: Runs, memory: Callable[[], int]
    ) -> None:
        self._kernel = kernel
        self._server = server
        self._streams = streams
        self._runs = runs
        self._memory = memory
        self._before: _Counted | None = None
        self._seen: set[Orphan] = set()
        self._stayed: set[Orphan] = set()
        self._warned = 0.0
        self.baseline: Baseline | None = None
        self.last: Round | None = None

    def go_round(self) -> Round:
        """Look at everything, say what is wrong, and remember it for the next round. It never waits."""
        seen = set(self._lingering())
        self._seen, self._stayed = seen, seen & self._seen
        orphans = self.orphans()
        if orphans:
            logger.error(
                "orphans", count=len(orphans), first=[attrs.asdict(each) for each in orphans[:SHOWN]]
            )
        self.last = self._measure(len(orphans))
        if not self.last.growing:
            self._warned = 0.0
        elif self.last.growth >= self._warned + GROWTH:  # once for each tenth, not at every round
            self._warned = self.last.growth
            logger.warning("memory grows", **attrs.asdict(self.last), **self._open())
        return self.last

    def orphans(self) -> list[Orphan]:
        """Return what has outlived its owner now."""
        left = find_orphans(self._kernel, self._server.sessions, self._streams)
        return left + [each for each in self._lingering() if each in self._stayed]

    def contexts(self) -> tuple[int, int, int]:
        """Return how many contexts were created, how many released, and how many ended requests left behind."""
        live = self._kernel.live
        return live.opened, live.opened - len(live.contexts), len(live.contexts) - len(live.requests)

    def statistics(self) -> dict[str, Any]:
        """Return what is left over now, and what the last round saw, as JSON can carry it."""
        orphans = self.orphans()
        created, released, kept = self.contexts()
        return {
            "orphans": len(orphans),
            "orphans_shown": [attrs.asdict(each) for each in orphans[:SHOWN]],
            "contexts_created": created,
            "contexts_released": released,
            "contexts_kept": kept,
            "baseline": None if self.baseline is None else attrs.asdict(self.baseline),
            "last_round": None if self.last is None else attrs.asdict(self.last),
        }

    def _lingering(self) -> Iterator[Orphan]:
        """Return what may linger for a moment on its way out; what two rounds have seen has stayed."""
        for request_id in kept_contexts(self._kernel):
            yield Orphan("context", request_id)
        names = {task.name for task in live_tasks()}
        for run in self._runs:
            if run.task_name not in names:
                yield Orphan("run", run.run_id)

    def _measure(self, orphans: int) -> Round:
        live, now, rss = self._kernel.live, trio.current_time(), self._memory()
        counted = _Counted(now, live.opened, live.opened - len(live.contexts))
        before, self._before = self._before or _Counted(now, counted.created, counted.released), counted
        seconds = max(now - before.at, 1e-9)
        open_now = sum(self._open().values())
        if self.baseline is None or open_now > self.baseline.open:
            self.baseline = Baseline(rss, open_now)
        grown = rss - self.baseline.rss_bytes
        growth = grown / self.baseline.rss_bytes
        return Round(
            created_per_second=(counted.created - before.created) / seconds,
            released_per_second=(counted.released - before.released) / seconds,
            rss_bytes=rss,
            growth=growth,
            growing=growth > GROWTH and grown > FLOOR_BYTES,
            orphans=orphans,
        )

    def _open(self) -> dict[str, int]:
        return {
            "sessions": len(self._server.sessions),
            "requests": len(self._kernel.live.requests),
            "runs": len(self._runs),
            "listeners": self._streams.listeners,
        }
