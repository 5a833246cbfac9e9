"""The event log writer: numbers events, makes them durable in batches, and only then publishes them.

Nothing reaches a client before it is in the log, so a number that a client has seen can never be given to
another event, whatever dies when. Batching is what makes that cheap: while one batch is being committed the
next one gathers, for all users together. The writer's role can append, and read no event. What cannot be written
together is written apart (`app.chat.apart`), so that nobody's events wait for somebody else's trouble.

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

from app.chat.apart import RETRY_SECONDS, ApartWriter
from app.chat.thread_log import Entry, LogBroken, ThreadLog, write
from nurseries.errors import OutcomeUnknown, Unavailable
from nurseries.postgres.failures import TransactionConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from app.store import journal as store
    from nurseries.events import Event, Origin, Streams
    from nurseries.postgres.scoped import Database

THREAD_EVENTS: Final = 256
BATCH_EVENTS: Final = 2048
PUBLISH_EVENTS: Final = 256
LINGER_SECONDS: Final = 0.010
PACE_SECONDS: Final = 0.004
logger = structlog.get_logger(__name__)


@attrs.define(eq=False)
class Batch:
    """What is committed together; `done` is set when there is room for more."""

    entries: dict[ThreadLog, Entry] = attrs.field(factory=dict)
    size: int = 0
    done: trio.Event = attrs.field(factory=trio.Event)


@attrs.frozen
class JournalStatistics:
    """Counts since the start, but for `waiting`, the events not yet committed, and `threads`, those open.

    `apart` are the threads of these whose events wait by themselves, since somebody holds a lock on their rows.
    """

    events: int
    batches: int
    retries: int
    broken: int
    waiting: int
    threads: int
    apart: int


class Journal:
    """The log that emitters write to, and the service that commits it."""

    def __init__(self, database: Database, streams: Streams) -> None:
        self._database = database
        self._streams = streams
        self._threads: dict[tuple[str, str], ThreadLog] = {}
        self._batch = Batch()
        self._wake = trio.Event()
        self._urgent = trio.Event()
        self._apart = ApartWriter(database, self._settle)
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
        """Return the part of the batch that is the thread's, or of what waits apart from it."""
        if log.apart is not None:
            if not log.apart:
                log.apart.append(Entry())
            entry = log.apart[-1]
        else:
            batch = self._batch
            batch.size += 1
            self._wake.set()
            entry = batch.entries.get(log) or batch.entries.setdefault(log, Entry())
        log.latest = entry
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
            self._events,
            self._batches,
            self._retries + self._apart.retries,
            self._broken,
            waiting,
            len(self._threads),
            len(self._apart),
        )

    # -- the service -------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Commit batches until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._apart.run)
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
                batch.done.set()
                await trio.sleep_until(not_before)

    async def _commit(self, batch: Batch) -> None:
        """Write a batch, however long the database is away; what is refused is written thread by thread."""
        # A steady order of threads, so that two writers of rows never wait for each other in a circle.
        entries = sorted(batch.entries.items(), key=lambda each: each[0].thread_id)
        for delay in chain(RETRY_SECONDS, repeat(RETRY_SECONDS[-1])):
            try:
                await write(self._database, entries)
            except (Unavailable, OutcomeUnknown, TransactionConflict) as error:
                logger.warning("the event log waits for the database", error=repr(error))
                self._retries += 1
            except Exception as error:  # noqa: BLE001  # a fault, or a lock that somebody holds
                logger.warning("a batch was refused; its threads are written one by one", error=repr(error))
                for log, entry in entries:
                    # What was added meanwhile is in the next batch, and must not overtake it.
                    following = self._batch.entries.pop(log, None)
                    self._apart.take(log, [entry] if following is None else [entry, following])
                return
            else:
                break
            await trio.sleep(delay)
        self._batches += 1
        written = 0
        for log, entry in entries:
            self._settle(log, entry)
            written += len(entry.events)
            if written >= PUBLISH_EVENTS:
                written = 0
                await trio.lowlevel.checkpoint()  # let the sockets' writers empty what was just filled

    def _settle(self, log: ThreadLog, entry: Entry) -> None:
        """Publish what is in the log, and tell who waits for it; if the thread is broken, tell them that."""
        log.uncommitted -= len(entry.events)
        if log.latest is entry:
            log.latest = None
        self._forget_committed(log)
        if log.broken is None:
            for event in entry.events:
                self._streams.publish(event)
            self._events += len(entry.events)
        elif log.latest is None:
            self._broken += 1
        entry.done.set()
        for call in entry.then:
            call()
