"""The runs of one thread: one at a time, the others in a queue. Every decision is one synchronous step."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.chat.journal import Journal
    from app.chat.run import Run
    from app.chat.thread_log import ThreadLog


@attrs.define(eq=False)
class ThreadRuns:
    """One thread of one user, while anything runs, waits or is being accepted in it."""

    accepting: trio.Lock = attrs.field(factory=trio.Lock)
    log: ThreadLog | None = None
    active: Run | None = None
    queue: deque[Run] = attrs.field(factory=deque)
    interested: int = 0
    deleted: bool = False

    def __iter__(self) -> Iterator[Run]:
        """Yield the active run, then those that wait."""
        if self.active is not None:
            yield self.active
        yield from self.queue

    @property
    def busy(self) -> bool:
        """Say whether a new run would have to wait."""
        return self.active is not None

    def add(self, run: Run, *, first: bool = False) -> None:
        """Put a run into the queue, and start it if nothing runs."""
        run.position = 0 if not self.busy else 1 if first else 1 + len(self.queue)
        if first:
            self.queue.appendleft(run)
        else:
            self.queue.append(run)
        self._advance()

    def remove(self, run: Run) -> None:
        """Take out a run that has ended, and start the next."""
        if run is self.active:
            self.active = None
        else:
            self.queue.remove(run)
        self._advance()

    def _advance(self) -> None:
        if self.active is None and self.queue:
            self.active = self.queue.popleft()
            self.active.turn.set()


class Threads:
    """The threads in which something goes on, by user and thread, so that nobody finds another's."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._threads: dict[tuple[str, str], ThreadRuns] = {}

    @contextmanager
    def entered(self, user_id: str, thread_id: str) -> Iterator[ThreadRuns]:
        """Keep the thread's state for the body of the block; it goes with the last that is interested."""
        thread = self.keep(user_id, thread_id)
        try:
            yield thread
        finally:
            self.drop(user_id, thread_id)

    def keep(self, user_id: str, thread_id: str) -> ThreadRuns:
        """Return the thread's state, which stays until `drop`."""
        thread = self._threads.setdefault((user_id, thread_id), ThreadRuns())
        thread.interested += 1
        return thread

    def drop(self, user_id: str, thread_id: str) -> None:
        """Give up an interest."""
        thread = self._threads[user_id, thread_id]
        thread.interested -= 1
        if not thread.interested:
            del self._threads[user_id, thread_id]
            if thread.log is not None:
                self._journal.close(thread.log)

    def get(self, user_id: str, thread_id: str) -> ThreadRuns | None:
        """Return the state of a thread in which something goes on."""
        return self._threads.get((user_id, thread_id))
