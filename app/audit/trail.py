"""The security audit trail: told synchronously, written by a service of its own.

Whoever tells it goes on at once, and whatever becomes of their request, the trace is on its way. The service
commits what gathered in transactions of its own, waits for a database that is away, and writes what is left when
the server drains. It ends after everything that tells it.

Bounds: `waiting` entries; what does not fit is counted, logged, and told by an entry as soon as there is room.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import structlog
import trio

from app.audit.entry import Entry, Suspicion
from app.audit.event import LOGGED, SecurityEvent
from app.audit.folding import Folding
from app.store import audit as store
from nurseries.cleanup import cleanup_scope
from nurseries.errors import Conflict, OutcomeUnknown, StatementTimeout, Unavailable
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from app.audit.settings import AuditSettings

T = TypeVar("T")

TRAIL_LIMITS: Final = PoolLimits(size=2, overflow=0, ready=1, per_user=2)
"""One connection that writes, and one for whoever reads."""

BATCH_ENTRIES: Final = 256
LINGER_SECONDS: Final = 0.05
RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)

logger = structlog.get_logger(__name__)


@attrs.frozen
class TrailStatistics:
    """How the trail stands.

    Attributes:
        waiting: entries that are not yet in the database.
        counted: events that wait for the end of their window, to be told together.
        written: entries since the start.
        lost: events that did not fit or could not be written, since the start.
        retries: since the start, how often the database had to be waited for.
    """

    waiting: int
    counted: int
    written: int
    lost: int
    retries: int


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Trail:
    """Collects what the parts of the server tell, and writes it."""

    def __init__(
        self, database: Database, settings: AuditSettings, *, now: Callable[[], datetime] = _utc_now
    ) -> None:
        """Make a trail; nothing is written before `run`.

        Args:
            database: of the audit role.
            settings: the bounds.
            now: the clock, in UTC.
        """
        self._database = database
        self._settings = settings
        self._now = now
        self._folding = Folding(settings.different)
        self._queue: deque[Entry | Suspicion] = deque()
        self._batch: list[Entry | Suspicion] = []  # taken from the queue, and not written yet
        self._wake = trio.Event()
        self._progress = trio.Event()
        # How many were told, are in the batch, and were written or found to be nothing.
        self._accepted = self._owed = self._settled = 0
        self._written = self._lost = self._untold = self._retries = 0

    # -- telling it --------------------------------------------------------------------------------

    def record(self, event: SecurityEvent) -> None:
        """Take note of an event. Returns at once and raises nothing, whatever state the trail is in."""
        try:
            entry = self._folded(event)
            if entry is not None:
                self._put(entry)
        except Exception:
            logger.exception("an event could not be recorded", kind=event.kind)

    def suspect(self, suspicion: Suspicion) -> None:
        """Have somebody who asked for ids in vain be recorded if one of them is somebody else's. As `record`."""
        if suspicion.ids:
            self._put(suspicion)

    def _folded(self, event: SecurityEvent) -> Entry | None:
        entry = self._folding.add(event, self._now())
        if entry is not None and event.kind in LOGGED:
            event.log()
        return entry

    def _put(self, item: Entry | Suspicion) -> None:
        if len(self._queue) + len(self._batch) >= self._settings.waiting:
            self._lose(item)
            return
        self._queue.append(item)
        self._accepted += 1
        self._wake.set()

    def _lose(self, item: Entry | Suspicion) -> None:
        if not self._untold:
            logger.error("the audit trail loses events", first=item.event.kind)
        count = item.count if isinstance(item, Entry) else 1
        self._lost += count
        self._untold += count

    # -- asking it ---------------------------------------------------------------------------------

    def statistics(self) -> TrailStatistics:
        """Return the counts at this instant."""
        waiting = len(self._queue) + len(self._batch)
        return TrailStatistics(waiting, len(self._folding), self._written, self._lost, self._retries)

    async def written(self) -> None:
        """Return when all that was recorded so far is in the table. What is only counted waits for its window."""
        told = self._accepted
        while self._settled < told:
            await self._progress.wait()
        await trio.lowlevel.checkpoint()

    async def page(
        self, after: int, limit: int, *, kind: str | None = None, user_id: str | None = None
    ) -> list[store.StoredEntry]:
        """Return entries as `app.store.audit.page` does."""
        return await store.page(self._database, after, limit, kind=kind, user_id=user_id)

    async def expire(self) -> int:
        """Remove what is older than the owner of the database keeps it; return how many entries went."""
        removed = 0
        while count := await store.expire(self._database):
            removed += count
        if removed:
            now = self._now()
            self._put(Entry(SecurityEvent("entries_expired"), removed, now, now))
        return removed

    # -- the service -------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Write until cancelled, and then what is left, within the time of a cleanup."""
        task_status.started()
        turn_at = trio.current_time() + self._settings.window_seconds
        try:
            while True:
                with trio.move_on_at(turn_at):
                    await self._wake.wait()
                    # Company for the entry; and whoever asked for a foreign id has the answer by now.
                    await trio.sleep(LINGER_SECONDS)
                if trio.current_time() >= turn_at:
                    self._turn()
                    turn_at = trio.current_time() + self._settings.window_seconds
                await self._write_out()
        finally:
            with cleanup_scope():
                await self._write_out()  # what is found out of a suspicion may be counted, so it comes first
                self._turn()
                await self._write_out()
            if left := len(self._queue) + len(self._batch):
                logger.error("the audit trail ends with entries unwritten", count=left)

    def _turn(self) -> None:
        for entry in self._folding.turn():
            self._put(entry)

    async def _write_out(self) -> None:
        """Write until nothing waits. Cut short, it goes on where it was: what is in the batch stays there."""
        self._wake = trio.Event()
        while self._queue or self._batch:
            while self._queue and len(self._batch) < BATCH_ENTRIES:
                self._batch.append(self._queue.popleft())
                self._owed += 1
            entries = [item for item in self._batch if isinstance(item, Entry)]
            suspicions = [item for item in self._batch if isinstance(item, Suspicion)]
            if suspicions:
                entries += await self._confirmed(suspicions)
                self._batch = list(entries)
            if entries:
                await self._write(entries)
            self._batch = []
            self._settled, self._owed = self._settled + self._owed, 0
            self._progress.set()
            self._progress = trio.Event()
            self._tell_losses()

    def _tell_losses(self) -> None:
        if self._untold and len(self._queue) < self._settings.waiting:
            now = self._now()
            entry = Entry(SecurityEvent("entries_lost"), self._untold, now, now)
            self._untold = 0
            self._put(entry)

    async def _confirmed(self, suspicions: list[Suspicion]) -> list[Entry]:
        """Return an entry for each id that is somebody else's, but for those that are counted."""
        ids = {id_ for suspicion in suspicions for id_ in suspicion.ids}
        try:
            found = await self._retrying(lambda: store.owners_of(self._database, ids))
        except Exception:
            logger.exception("it cannot be found out whose ids were asked for", count=len(ids))
            return []
        owned = {one.id: one for one in found}
        foreign = (self._folded(event) for suspicion in suspicions for event in suspicion.confirmed(owned))
        return [entry for entry in foreign if entry is not None]

    async def _write(self, entries: list[Entry]) -> None:
        try:
            await self._append(entries)
        except Exception as error:  # noqa: BLE001  # whatever it is, only the entry that it is about may be lost
            logger.warning("a batch of the audit trail was refused; writing it one by one", error=repr(error))
            for entry in entries:
                await self._write_alone(entry)

    async def _write_alone(self, entry: Entry) -> None:
        try:
            await self._append([entry])
        except Exception:
            logger.exception("an entry of the audit trail cannot be written", kind=entry.event.kind)
            self._lose(entry)

    async def _append(self, entries: list[Entry]) -> None:
        rows = [entry.row() for entry in entries]
        await self._retrying(lambda: store.append(self._database, rows))
        self._written += len(entries)

    async def _retrying(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it until the database does it: each entry has an id, so an unknown outcome needs no look-up."""
        delays = chain(RETRY_SECONDS, repeat(RETRY_SECONDS[-1]))
        while True:
            try:
                return await work()
            except (Unavailable, OutcomeUnknown, StatementTimeout, Conflict) as error:
                logger.warning("the audit trail waits for the database", error=repr(error))
                self._retries += 1
            await trio.sleep(next(delays))


@asynccontextmanager
async def open_trail(conninfo: str, settings: AuditSettings) -> AsyncIterator[Trail]:
    """Have a trail that is being written for the body of the block; at its end all of it is written.

    Raises:
        DatabaseUnavailable: the database cannot be reached.
    """
    async with open_pool(conninfo, TRAIL_LIMITS) as pool, trio.open_nursery() as nursery:
        trail = Trail(Database(pool, borrower="audit"), settings)
        await nursery.start(trail.run)
        yield trail
        nursery.cancel_scope.cancel()
