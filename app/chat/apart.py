"""Writes apart what could not be written together, so that one thread's trouble keeps nobody else's events.

A thread comes here when the batch that it was in was refused: it may be the one at fault, or its neighbour. Each
is tried by itself. Who was innocent is written at once and goes back to the others; who is at fault is broken;
and whose rows somebody holds a lock on, such as a transaction of the user's own agent, waits here with all that
follows, while everybody else goes on.

Bounds: one try at a time, each no longer than `app.store.journal.LOCK_MILLISECONDS` for a lock; a thread has as
many events here as it may have uncommitted anywhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from app.chat.thread_log import write
from nurseries.errors import Conflict, OutcomeUnknown, StatementTimeout, Unavailable
from nurseries.postgres.failures import UniqueViolation

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.chat.thread_log import Entry, ThreadLog
    from nurseries.postgres.scoped import Database

RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
TIMEOUTS: Final = 2
logger = structlog.get_logger(__name__)


@attrs.define(eq=False)
class _Turn:
    """When a thread is tried next, and how often it was in vain."""

    at: float
    tries: int = 0
    timeouts: int = 0


class ApartWriter:
    """The threads that are written apart, and the service that does it.

    Args:
        database: of the journal's role.
        settle: called with what is in the log, or never will be: then the thread is `broken`.
    """

    def __init__(self, database: Database, settle: Callable[[ThreadLog, Entry], None]) -> None:
        self._database = database
        self._settle = settle
        self._turns: dict[ThreadLog, _Turn] = {}
        self._woken = trio.Event()
        self.retries = 0

    def __len__(self) -> int:
        """Return how many threads are here."""
        return len(self._turns)

    def take(self, log: ThreadLog, entries: list[Entry]) -> None:
        """Write these entries apart, in their order, and what is added to the thread until that is done."""
        assert log.apart is None, "what waits here is in no batch"
        log.apart = entries
        self._turns[log] = _Turn(trio.current_time())
        self._woken.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            log = min(self._turns, key=lambda each: self._turns[each].at, default=None)
            with trio.move_on_at(math.inf if log is None else self._turns[log].at) as waiting:
                await self._woken.wait()
                self._woken = trio.Event()
            if waiting.cancelled_caught:
                assert log is not None
                await self._try(log, self._turns[log])

    async def _try(self, log: ThreadLog, turn: _Turn) -> None:
        assert log.apart is not None
        entries, log.apart = log.apart, []
        try:
            await write(self._database, [(log, entry) for entry in entries])
        except Exception as error:  # noqa: BLE001  # whatever it is, it stays with this thread
            if self._passes(log, turn, error):
                log.apart[:0] = entries
                return
            log.broken = error
            entries += log.apart  # what was added meanwhile is as lost
            log.apart = []
        for entry in entries:
            self._settle(log, entry)
        if log.apart:
            turn.at, turn.tries, turn.timeouts = trio.current_time(), 0, 0
        else:
            log.apart = None
            del self._turns[log]

    def _passes(self, log: ThreadLog, turn: _Turn, error: Exception) -> bool:
        """Say whether to try again later. A statement that takes too long by itself is tried so often, and no more."""
        turn.timeouts += isinstance(error, StatementTimeout)
        transient = isinstance(error, (Unavailable, OutcomeUnknown, StatementTimeout, Conflict))
        if not transient or isinstance(error, UniqueViolation) or turn.timeouts > TIMEOUTS:
            logger.error("a thread's events cannot be written", thread_id=log.thread_id, exc_info=error)
            return False
        if not turn.tries:
            logger.warning("a thread's events wait", thread_id=log.thread_id, error=repr(error))
        self.retries += 1
        turn.at = trio.current_time() + RETRY_SECONDS[min(turn.tries, len(RETRY_SECONDS) - 1)]
        turn.tries += 1
        return True
