"""Events: made for one user, sequenced by a log, delivered to that user's sockets and to nobody else's.

    Emitter (bound to one context) -> Log (numbers them, keeps them) -> Streams -> Outbox (one per listener)

An `Emitter` cannot name another recipient; a `Stream` holds the outboxes of one user; an `Outbox` is
bounded, and a listener that lets it overflow is cut off and resumes by `seq`. `verify` is the last look
before an event leaves the process.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import msgspec
import trio

from nurseries.errors import Misdelivery, RequestEnded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nurseries.context import UserContext

OUTBOX_EVENTS: Final = 2048
OUTBOX_BYTES: Final = 8 * 1024 * 1024


def delivery_checksum(user_id: str, thread_id: str, run_id: str) -> str:
    """Return the first 16 hex digits of SHA-256 over `user_id:thread_id:run_id`."""
    return hashlib.sha256(f"{user_id}:{thread_id}:{run_id}".encode()).hexdigest()[:16]


@attrs.frozen
class Envelope:
    """What the wire and the log carry; the field names are the protocol's."""

    type: str
    event_id: str
    seq: int
    user_id: str
    thread_id: str
    run_id: str
    timestamp: datetime
    payload: Mapping[str, Any]
    delivery_checksum: str


@attrs.frozen(eq=False)
class Event:
    """One numbered event: what routes it, and its envelope as JSON, encoded once for the log and every socket."""

    user_id: str
    thread_id: str
    run_id: str
    seq: int
    type: str
    delivery_checksum: str
    data: bytes


_encode: Final = msgspec.json.Encoder().encode


@attrs.frozen
class Origin:
    """Whose event it is, with the checksum computed once for a whole run."""

    user_id: str
    thread_id: str
    run_id: str
    delivery_checksum: str

    @classmethod
    def of(cls, context: UserContext) -> Origin:
        """Take identity from the context, its only source."""
        return cls.of_ids(context.user_id, context.thread_id, context.run_id)

    @classmethod
    def of_ids(cls, user_id: str, thread_id: str, run_id: str) -> Origin:
        """Take identity from the log itself, for a run whose context was lost with its server."""
        return cls(user_id, thread_id, run_id, delivery_checksum(user_id, thread_id, run_id))

    def event(self, event_type: str, seq: int, payload: Mapping[str, Any]) -> Event:
        """Return the event with its number and its encoded envelope."""
        envelope = Envelope(
            event_type,
            f"{self.thread_id}:{seq}",
            seq,
            self.user_id,
            self.thread_id,
            self.run_id,
            datetime.now(UTC),
            payload,
            self.delivery_checksum,
        )
        return Event(
            self.user_id,
            self.thread_id,
            self.run_id,
            seq,
            event_type,
            self.delivery_checksum,
            _encode(envelope),
        )


class Log(Protocol):
    """Numbers events, keeps them and then publishes them."""

    async def append(self, origin: Origin, event_type: str, payload: Mapping[str, Any]) -> Event:
        """Give the event the next number of its thread. May wait: that is how a fast run is slowed."""
        ...


class Emitter:
    """Says what happens in one request. The recipient is fixed at construction."""

    __slots__ = ("_closed", "_log", "_origin")

    def __init__(self, context: UserContext, log: Log) -> None:
        self._origin = Origin.of(context)
        self._log = log
        self._closed = False

    async def emit(self, event_type: str, payload: Mapping[str, Any]) -> Event:
        """Append one event to the thread's log.

        Raises:
            RequestEnded: the request has ended.
        """
        if self._closed:
            raise RequestEnded(f"{event_type}: the request has ended")
        return await self._log.append(self._origin, event_type, payload)

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True


class Outbox:
    """What waits for one listener. Filled without waiting, emptied in batches.

    Attributes:
        user_id: whose events it takes.
        overflowed: whether something did not fit.
        owner: the task that listens, for inspection.
    """

    __slots__ = ("_bytes", "_receive", "_send", "_size", "overflowed", "owner", "user_id")

    def __init__(self, user_id: str, *, events: int = OUTBOX_EVENTS, size: int = OUTBOX_BYTES) -> None:
        self.user_id = user_id
        self.owner = trio.lowlevel.current_task() if trio.lowlevel.in_trio_task() else None
        self.overflowed = False
        self._size = size
        self._bytes = 0
        self._send, self._receive = trio.open_memory_channel[Event | bytes](events)

    def offer(self, item: Event | bytes) -> None:
        """Add without waiting. What does not fit marks the outbox `overflowed`, and it takes nothing more."""
        if self.overflowed:
            return
        size = len(item if isinstance(item, bytes) else item.data)
        try:
            if self._bytes + size > self._size:
                raise trio.WouldBlock  # noqa: TRY301  # the two ways to be full end in one place
            self._send.send_nowait(item)
        except trio.WouldBlock:
            # The listener reads what was queued before, an unbroken prefix, and then the end of the channel.
            self.overflowed = True
            self._send.close()
        else:
            self._bytes += size

    async def send(self, item: bytes) -> None:
        """Add an answer to this listener alone, waiting for room: whoever asks too fast waits for themselves."""
        await self._send.send(item)
        self._bytes += len(item)

    async def take(self) -> list[Event | bytes]:
        """Return all that waits, at least one item.

        Raises:
            trio.EndOfChannel: the outbox overflowed and is empty now.
        """
        first = await self._receive.receive()
        return [first, *self.take_nowait()]

    def take_nowait(self) -> list[Event | bytes]:
        """Return all that waits, perhaps nothing."""
        items: list[Event | bytes] = []
        try:
            while True:
                items.append(self._receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            self._bytes = 0
        return items

    def close(self) -> None:
        """Drop what waits and take nothing more."""
        self._send.close()
        self._receive.close()


class Streams:
    """The users that somebody listens for. One user's stream is a set of outboxes, gone with the last."""

    def __init__(self) -> None:
        self._outboxes: dict[str, set[Outbox]] = {}

    @contextmanager
    def listen(
        self, user_id: str, *, events: int = OUTBOX_EVENTS, size: int = OUTBOX_BYTES
    ) -> Iterator[Outbox]:
        """Hold an outbox that receives all events of `user_id` from this moment on."""
        outbox = Outbox(user_id, events=events, size=size)
        self._outboxes.setdefault(user_id, set()).add(outbox)
        try:
            yield outbox
        finally:
            stream = self._outboxes[user_id]
            stream.discard(outbox)
            if not stream:
                del self._outboxes[user_id]
            outbox.close()

    def publish(self, event: Event) -> None:
        """Offer the event to every listener of its user. Never waits, so that no listener slows another."""
        for outbox in self._outboxes.get(event.user_id, ()):
            outbox.offer(event)

    def outboxes(self) -> tuple[Outbox, ...]:
        """Return all outboxes, for inspection."""
        return tuple(outbox for stream in self._outboxes.values() for outbox in stream)

    @property
    def users(self) -> int:
        """How many users somebody listens for."""
        return len(self._outboxes)

    @property
    def listeners(self) -> int:
        """How many outboxes there are."""
        return sum(map(len, self._outboxes.values()))


def verify(event: Event, user_id: str) -> None:
    """Look once more, just before the event leaves for `user_id`.

    Raises:
        Misdelivery: the event is another user's, or its checksum is not that of its own ids.
    """
    if event.user_id != user_id:
        raise Misdelivery(f"event {event.thread_id}:{event.seq} is not of the user it was about to reach")
    if event.delivery_checksum != delivery_checksum(user_id, event.thread_id, event.run_id):
        raise Misdelivery(f"event {event.thread_id}:{event.seq} carries the checksum of other ids")


class MemoryLog:
    """Numbers events in memory and publishes them at once: for programs that need no durable log."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._last_seq: dict[str, int] = {}

    async def append(self, origin: Origin, event_type: str, payload: Mapping[str, Any]) -> Event:
        """Give the next number of the thread and publish."""
        await trio.lowlevel.checkpoint()
        event = origin.event(event_type, self._last_seq.get(origin.thread_id, 0) + 1, payload)
        self._last_seq[origin.thread_id] = event.seq
        self._streams.publish(event)
        return event
