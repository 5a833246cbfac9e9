"""Which events of which thread a session may send now: exact resumption, decided synchronously.

A client that comes back says `subscribe` with the last number it saw. From the instant its frame is read,
live events of that thread are held; the log is read from the cursor on; then, in one instant, what was held
and is newer than the last event read goes out, and the thread is live again. An event is therefore never
sent twice between the two, and never missed, because it is in the log before it is published.

A session is born unsettled: for a moment nothing live is sent, so that a client which subscribes first thing
sees its missed events before the new ones. Any other frame, or `SETTLE_SECONDS`, settles it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nurseries.events import Event

SETTLE_SECONDS: Final = 1.0
HELD_EVENTS: Final = 1024
REMEMBERED_FLOORS: Final = 1000


class History(Protocol):
    """A thread's events in the log, as far as this session's user may read them."""

    async def last_seq(self, thread_id: str) -> int:
        """Return the number of the thread's last event, 0 for a thread without events."""
        ...

    async def read(self, thread_id: str, after: int) -> Sequence[Event]:
        """Return some of the events after `after`, in order and without a gap; none at the end of the log."""
        ...


@attrs.define(eq=False)
class Hold:
    """Live events of one thread that wait for its replay. More than `HELD_EVENTS` are re-read from the log."""

    events: list[Event] = attrs.field(factory=list)
    overflowed: bool = False

    def add(self, event: Event) -> None:
        """Keep one event, or only the knowledge that there was more."""
        if len(self.events) < HELD_EVENTS and not self.overflowed:
            self.events.append(event)
        else:
            self.events.clear()
            self.overflowed = True


class Resume:
    """The state of one session: unsettled or not, the threads on hold, and how far each replay went."""

    __slots__ = ("_early", "_floors", "_holds", "settled")

    def __init__(self) -> None:
        self.settled = False
        self._early: list[Event] = []
        self._holds: dict[str, Hold] = {}
        # The writer may have taken an event off the outbox just before a replay read it from the log;
        # the floor is what tells it so. Bounded: the oldest thread is forgotten long after its replay.
        self._floors: OrderedDict[str, int] = OrderedDict()

    def admit(self, event: Event) -> bool:
        """Say whether a live event may go out now; if it is to wait, keep it."""
        hold = self._holds.get(event.thread_id)
        if hold is not None:
            hold.add(event)
            return False
        floor = self._floors.get(event.thread_id)
        if floor is not None:
            return event.seq > floor
        if not self.settled:
            self._early.append(event)
            self.settled = len(self._early) >= HELD_EVENTS  # too many to wait for a client that does not ask
            return False
        return True

    def early(self) -> list[Event]:
        """Return what waited in the first moment, once it is over."""
        if not self.settled or not self._early:
            return []
        early, self._early = self._early, []
        return early

    def hold(self, thread_id: str) -> None:
        """Hold a thread's live events from now on."""
        hold = self._holds[thread_id] = Hold()
        for event in self._early:
            if event.thread_id == thread_id:
                hold.add(event)
        self._early = [event for event in self._early if event.thread_id != thread_id]

    def overflowed(self, thread_id: str) -> bool:
        """Say whether the hold lost events, and start it afresh: the log must be read once more."""
        hold = self._holds[thread_id]
        if not hold.overflowed:
            return False
        self._holds[thread_id] = Hold()
        return True

    def release(self, thread_id: str, cursor: int) -> list[Event]:
        """Make the thread live and return the held events after `cursor`, in order."""
        events = [event for event in self._holds.pop(thread_id).events if event.seq > cursor]
        self._floors[thread_id] = events[-1].seq if events else cursor
        self._floors.move_to_end(thread_id)
        if len(self._floors) > REMEMBERED_FLOORS:
            self._floors.popitem(last=False)
        return events
