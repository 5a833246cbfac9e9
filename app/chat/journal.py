"""The event log writer: numbers events, makes them durable in batches, and only then publishes them.

Nothing reaches a client before it is in the log, so a number that a client has seen can never be given to
another event, whatever dies when. Batching is what makes that cheap: while one batch is being committed the
next one gathers, for all users together. The writer's role can append, and read no event.

Bounds: `THREAD_EVENTS` uncommitted events a thread and `BATCH_EVENTS` a batch; whoever wants to add more
waits, which is how a run that is faster than the database is slowed. The first and the last event of a run do
not wait: there are no more of them than runs.
"""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final

import attrs
import structlog
import trio

from app.store import journal as store
from nurseries.errors import Conflict, Fault, OutcomeUnknown, StatementTimeout, Unavailable
from nurseries.postgres.failures import UniqueViolation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nurseries.events import Event, Origin, Streams
    from nurseries.postgres.scoped import Database

THREAD_EVENTS: Final = 256
BATCH_EVENTS: Final = 2048
PUBLISH_EVENTS: Final = 256
LINGER_SECONDS: Final = 0.010
PACE_SECONDS: Final = 0.004
RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
TIMEOUTS: Final = 2
logger = structlog.get_logger(__name__)


class LogBroken(Fault):
    """The thread's events cannot be written; its run ends."""

    code = "log_broken"


@attrs.define(eq=False)
class ThreadLog:
    """The numbering of one thread while something runs in it."""

    user_id: str
    thread_id: str
    last_seq: int
    uncommitted: int = 0
    latest: Batch | None = None
    broken: Exception | None = None
    closing: bool = False


@attrs.define(eq=False)
class Entry:
    """What a batch holds of one thread: events, and what is committed with them."""

    events: list[Event] = attrs.field(factory=list)
    records: list[store.Record] = attrs.field(factory=list)


@attrs.define(eq=False)
class Batch:
    """What is committed together; when it is, or never will be, `done` is set and everything in `then` is called."""

    entries: dict[ThreadLog, Entry] = attrs.field(factory=dict)
    size: int = 0
    done: trio.Event = attrs.field(factory=trio.Event)
    then: list[Callable[[], None]] = attrs.field(factory=list)


@attrs.frozen
class JournalStatistics:
    """Counts since the start, but for `waiting`, the events not yet committed, and `threads`, those open."""

    events: int
    batches: int
    retries: int
    broken: int
    waiting: int
    threads: int


class Journal:
    """The log that emitters write to, and the service that commits it."""

    def __init__(self, database: Database, streams: Streams) -> None:
        self._database = database
        self._streams = streams
        self._threads: dict[tuple[str, str], ThreadLog] = {}
        self._batch = Batch()
        self._wake = trio.Event()
        self._urgent = trio.Event()
        self._events = self._batches = self._retries = self._broken = 0

    # -- writing to it -----------------------------------------------------------------------------

    def open(self, user_id: str, thread_id: str, last_seq: int) -> ThreadLog:
        """Begin to number a thread after `last_seq`; whoever opens it must `close` it."""
        log = self._threads.get((user_id, thread_id))
        if log is None:
            log = self._threads[user_id, thread_id] = ThreadLog(user_id, thread_id, last_seq)
        assert log.closing or log.last_seq == last_seq, "one writer a thread"
        log.closing = False  # one that waits to be forgotten still knows the numbers best
        return log

    def close(self, log: ThreadLog) -> None:
        """Forget a thread as soon as its events are committed."""
        log.closing = True
        self._forget_committed(log)

    def _forget_committed(self, log: ThreadLog) -> None:
        if log.closing and log.latest is None:
            del self._threads[log.user_id, log.thread_id]

    async def append(
        self, origin: Origin, event_type: str, payload: Mapping[str, Any], *records: store.Record
    ) -> Event:
        """Give an event its number, to be committed together with `records`.

        Raises:
            LogBroken: an earlier event of the thread could not be written.
        """
        await self._room(origin)
        return self.append_nowait(origin, event_type, payload, *records)

    def append_nowait(
        self, origin: Origin, event_type: str, payload: Mapping[str, Any], *records: store.Record
    ) -> Event:
        """Do so without waiting for room: for the first and the last event of a run, which are never in vain.

        Raises:
            LogBroken: an earlier event of the thread could not be written.
        """
        log = self._writable(origin)
        event = origin.event(event_type, log.last_seq + 1, payload)
        log.last_seq = event.seq  # only now: a payload that cannot be encoded must not leave a gap
        entry = self._enter(log)
        entry.events.append(event)
        entry.records += records
        log.uncommitted += 1
        if event_type != "message_delta":
            self._urgent.set()
        return event

    async def keep(self, origin: Origin, *records: store.Record) -> None:
        """Commit `records` together with what was appended last; return when they are in the database.

        Raises:
            LogBroken: the thread cannot be written.
        """
        await self._room(origin)
        self._enter(self._writable(origin)).records += records
        self._urgent.set()
        await self.committed(origin)

    async def _room(self, origin: Origin) -> None:
        """Return when the thread's log and the batch have room for one more."""
        log = self._threads[origin.user_id, origin.thread_id]
        await trio.lowlevel.checkpoint()
        while log.uncommitted >= THREAD_EVENTS and log.latest is not None:
            await log.latest.done.wait()
        while self._batch.size >= BATCH_EVENTS:
            await self._batch.done.wait()

    def _writable(self, origin: Origin) -> ThreadLog:
        log = self._threads[origin.user_id, origin.thread_id]
        if log.broken is not None:
            raise LogBroken(f"the log of thread {log.thread_id} cannot be written") from log.broken
        return log

    def _enter(self, log: ThreadLog) -> Entry:
        """Count one more into the batch, and return the thread's part of it."""
        batch = log.latest = self._batch
        batch.size += 1
        self._wake.set()
        entry = batch.entries.get(log)
        if entry is None:
            entry = batch.entries[log] = Entry()
        return entry

    async def committed(self, origin: Origin) -> None:
        """Return when everything appended to the thread so far is in the log.

        Raises:
            LogBroken: it could not be written.
        """
        log = self._threads[origin.user_id, origin.thread_id]
        if log.latest is not None:
            await log.latest.done.wait()
        else:
            await trio.lowlevel.checkpoint()
        self._writable(origin)

    def when_settled(self, user_id: str, thread_id: str, call: Callable[[], None]) -> None:
        """Call when nothing waits that was appended to the thread so far: it is in the log, or never will be."""
        log = self._threads.get((user_id, thread_id))
        if log is None or log.latest is None:
            call()
        else:
            log.latest.then.append(call)

    async def settled(self, user_id: str, thread_id: str) -> None:
        """Return when nothing waits that was appended to the thread so far: it is in the log, or never will be."""
        log = self._threads.get((user_id, thread_id))
        if log is None or log.latest is None:
            await trio.lowlevel.checkpoint()
        else:
            await log.latest.done.wait()

    def open_threads(self) -> frozenset[tuple[str, str]]:
        """Return the threads, with their users, in which something runs or has yet to be written."""
        return frozenset(self._threads)

    def statistics(self) -> JournalStatistics:
        """Return the counts at this instant."""
        waiting = sum(log.uncommitted for log in self._threads.values())
        return JournalStatistics(
            self._events, self._batches, self._retries, self._broken, waiting, len(self._threads)
        )

    # -- the service -------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Commit batches until cancelled."""
        task_status.started()
        while True:
            await self._wake.wait()
            # Words may wait a moment for company; a step of a run's life goes at once.
            with trio.move_on_after(LINGER_SECONDS):
                await self._urgent.wait()
            not_before = trio.current_time() + PACE_SECONDS
            batch, self._batch = self._batch, Batch()
            self._wake, self._urgent = trio.Event(), trio.Event()
            await self._commit(batch)
            await self._publish(batch)
            await trio.sleep_until(not_before)

    async def _commit(self, batch: Batch) -> None:
        try:
            await self._write(batch.entries)
        except Exception as error:  # noqa: BLE001  # whatever it is, only the threads it is about may suffer
            logger.warning("a batch was refused; writing its threads one by one", error=repr(error))
            for log, entry in batch.entries.items():
                await self._commit_alone(log, entry)

    async def _commit_alone(self, log: ThreadLog, entry: Entry) -> None:
        """Write what one thread has in a refused batch, so that its fault stays with it."""
        try:
            await self._write({log: entry}, timeouts=TIMEOUTS)
        except Exception as error:
            logger.exception("a thread's events cannot be written", thread_id=log.thread_id)
            log.broken = error
            self._broken += 1

    async def _write(self, entries: Mapping[ThreadLog, Entry], *, timeouts: int = 0) -> None:
        """Write until it is written: the statements may be repeated, so an unknown outcome needs no look-up.

        A lock that somebody holds is waited for. A statement that takes too long by itself is tried so often
        again, and no more: everybody's events wait behind it.
        """
        # A steady order of threads, so that two writers of rows never wait for each other in a circle.
        ordered = sorted(entries.items(), key=lambda each: each[0].thread_id)
        chunks = [_chunk(log, entry.events) for log, entry in ordered if entry.events]
        records = [record for _, entry in ordered for record in entry.records]
        for attempt, delay in enumerate(chain(RETRY_SECONDS, repeat(RETRY_SECONDS[-1]))):
            try:
                await store.write(self._database, chunks, records, again=attempt > 0)
            except UniqueViolation:
                raise  # two writers of one thread: that does not pass
            except (Unavailable, OutcomeUnknown, StatementTimeout, Conflict) as error:
                timeouts -= isinstance(error, StatementTimeout)
                if timeouts < 0:
                    raise
                logger.warning("the event log waits for the database", error=repr(error))
                self._retries += 1
                await trio.sleep(delay)
            else:
                return

    async def _publish(self, batch: Batch) -> None:
        self._batches += 1
        published = 0
        for log, entry in batch.entries.items():
            log.uncommitted -= len(entry.events)
            if log.latest is batch:
                log.latest = None
            self._forget_committed(log)
            if log.broken is not None:
                continue
            for event in entry.events:
                self._streams.publish(event)
                published += 1
                if published % PUBLISH_EVENTS == 0:
                    await trio.lowlevel.checkpoint()  # let the sockets' writers empty what was just filled
        self._events += published
        batch.done.set()
        for call in batch.then:
            call()


def _chunk(log: ThreadLog, events: list[Event]) -> store.Chunk:
    lines = b"\n".join([event.data for event in events]).decode()
    return store.Chunk(log.thread_id, events[0].seq, events[-1].seq, log.user_id, lines)
