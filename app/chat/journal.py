"""The event log writer: numbers events, makes them durable in batches, and only then publishes them.

Nothing reaches a client before it is in the log, so a number that a client has seen can never be given to
another event, whatever dies when. Batching is what makes that cheap: while one batch is being committed the
next one gathers, for all users together. The writer's role can append, and read no event.

Bounds: `THREAD_EVENTS` uncommitted events a thread and `BATCH_EVENTS` a batch; whoever wants to add more
waits, which is how a run that is faster than the database is slowed.
"""

from __future__ import annotations

from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final

import attrs
import structlog
import trio

from app.store import journal as store
from nurseries.errors import Fault, OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nurseries.events import Event, Origin, Streams
    from nurseries.postgres.scoped import Database

THREAD_EVENTS: Final = 256
BATCH_EVENTS: Final = 2048
PUBLISH_EVENTS: Final = 256
LINGER_SECONDS: Final = 0.010
PACE_SECONDS: Final = 0.004
RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
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
class Batch:
    """What is committed together; `done` is set when it is, or when it never will be."""

    events: dict[ThreadLog, list[Event]] = attrs.field(factory=dict)
    messages: list[store.NewMessage] = attrs.field(factory=list)
    changes: list[store.RunChange] = attrs.field(factory=list)
    size: int = 0
    urgent: bool = False
    done: trio.Event = attrs.field(factory=trio.Event)


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
        if log.closing and not log.uncommitted:
            del self._threads[log.user_id, log.thread_id]

    async def append(
        self,
        origin: Origin,
        event_type: str,
        payload: Mapping[str, Any],
        *,
        change: store.RunChange | None = None,
        message: store.NewMessage | None = None,
    ) -> Event:
        """Give an event its number, to be committed together with `change` and `message`.

        Raises:
            LogBroken: an earlier event of the thread could not be written.
        """
        log = self._threads[origin.user_id, origin.thread_id]
        await trio.lowlevel.checkpoint()
        while log.uncommitted >= THREAD_EVENTS and log.latest is not None:
            await log.latest.done.wait()
        while self._batch.size >= BATCH_EVENTS:
            await self._batch.done.wait()
        if log.broken is not None:
            raise LogBroken(f"the log of thread {log.thread_id} cannot be written") from log.broken
        # From here to the return nothing waits: number and place in the batch are one step.
        event = origin.event(event_type, log.last_seq + 1, payload)
        log.last_seq = event.seq  # only now: a payload that cannot be encoded must not leave a gap
        batch = log.latest = self._batch
        batch.events.setdefault(log, []).append(event)
        batch.size += 1
        log.uncommitted += 1
        if change is not None:
            batch.changes.append(change)
        if message is not None:
            batch.messages.append(message)
        if event_type != "message_delta":
            self._urgent.set()
        self._wake.set()
        return event

    async def committed(self, origin: Origin) -> None:
        """Return when everything appended to the thread so far is in the log.

        Raises:
            LogBroken: it could not be written.
        """
        log = self._threads[origin.user_id, origin.thread_id]
        if log.latest is not None:
            await log.latest.done.wait()
        if log.broken is not None:
            raise LogBroken(f"the log of thread {log.thread_id} cannot be written") from log.broken

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
            await self._write(list(batch.events), batch.events, batch.messages, batch.changes)
        except Exception as error:  # noqa: BLE001  # whatever it is, only the threads it is about may suffer
            logger.warning("a batch was refused; writing its threads one by one", error=repr(error))
            for log, events in batch.events.items():
                await self._commit_alone(log, events, batch)

    async def _commit_alone(self, log: ThreadLog, events: list[Event], batch: Batch) -> None:
        """Write what one thread has in a refused batch, so that its fault stays with it."""
        runs = {event.run_id for event in events}
        messages = [message for message in batch.messages if message.thread_id == log.thread_id]
        changes = [change for change in batch.changes if change.run_id in runs]
        try:
            await self._write([log], {log: events}, messages, changes)
        except Exception as error:
            logger.exception("a thread's events cannot be written", thread_id=log.thread_id)
            log.broken = error
            self._broken += 1

    async def _write(
        self,
        logs: list[ThreadLog],
        events: Mapping[ThreadLog, list[Event]],
        messages: list[store.NewMessage],
        changes: list[store.RunChange],
    ) -> None:
        """Write until it is written: the statements may be repeated, so an unknown outcome needs no look-up."""
        chunks = [_chunk(log, events[log]) for log in logs]
        # A steady order of threads, so that two writers of rows never wait for each other in a circle.
        chunks.sort(key=lambda chunk: chunk.thread_id)
        for attempt, delay in enumerate(chain(RETRY_SECONDS, repeat(RETRY_SECONDS[-1]))):
            try:
                await store.write(self._database, chunks, messages, changes, again=attempt > 0)
            except (Unavailable, OutcomeUnknown) as error:
                logger.warning("the event log waits for the database", error=repr(error))
                self._retries += 1
                await trio.sleep(delay)
            else:
                return

    async def _publish(self, batch: Batch) -> None:
        self._batches += 1
        published = 0
        for log, events in batch.events.items():
            log.uncommitted -= len(events)
            if log.latest is batch:
                log.latest = None
            self._forget_committed(log)
            if log.broken is not None:
                continue
            for event in events:
                self._streams.publish(event)
                published += 1
                if published % PUBLISH_EVENTS == 0:
                    await trio.lowlevel.checkpoint()  # let the sockets' writers empty what was just filled
        self._events += published
        batch.done.set()


def _chunk(log: ThreadLog, events: list[Event]) -> store.Chunk:
    lines = b"\n".join([event.data for event in events]).decode()
    return store.Chunk(log.thread_id, events[0].seq, events[-1].seq, log.user_id, lines)
