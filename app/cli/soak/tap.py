"""Every frame that reaches a user, looked at as it came: whose it is, and whether it is the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from app.cli.frames import Cursor, checksum

if TYPE_CHECKING:
    from app.cli.frames import Frame
    from app.cli.load import Tally
    from app.cli.soak.marks import Marks


@attrs.frozen(eq=False)
class Witness:
    """What all streams of one user are compared with.

    Attributes:
        user_id: whose they are.
        marks: who owns what.
        tally: where things are counted.
        canary: the word that only this user says, in everything they say.
        ends: the number of the event that ended each run.
    """

    user_id: str
    marks: Marks
    tally: Tally
    canary: str
    ends: dict[str, int] = attrs.field(factory=dict)

    def look(self, data: bytes, what: str) -> None:
        """Count everything in `data` that is somebody else's."""
        for mark in self.marks.foreign(self.user_id, data):
            self.tally.misdelivered_data(what, mark)


class Tap:
    """One stream of one user, from its beginning: a socket, or an answer with server-sent events."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._cursors: dict[str, Cursor] = {}

    def expect(self, thread_id: str, after: int) -> None:
        """The next event of this thread must be the one after `after`."""
        self._cursors[thread_id] = Cursor(after)

    def seen(self, thread_id: str) -> int:
        """Return the number of the thread's last event that came."""
        return self._cursors[thread_id].seq

    def take(self, frame: Frame, raw: bytes) -> None:
        """Look at one frame."""
        self._witness.look(raw, frame.type)
        if frame.is_event:
            self._take_event(frame)
        elif frame.type == "subscribed":
            self.expect(frame.thread_id, frame.after if frame.recovered else frame.last_seq)
            if not frame.recovered:
                self._witness.tally.error("a cursor that was not honoured")
        elif frame.type == "connection_established" and frame.user_id != self._witness.user_id:
            self._witness.tally.misdelivery(frame, f"a socket of {frame.user_id}")

    def _take_event(self, frame: Frame) -> None:
        witness = self._witness
        witness.tally.events += 1
        if frame.user_id != witness.user_id:
            witness.tally.misdelivery(frame, f"of user {frame.user_id}")
            return
        if frame.delivery_checksum != checksum(frame.user_id, frame.thread_id, frame.run_id):
            witness.tally.misdelivery(frame, f"checksum {frame.delivery_checksum}")
        cursor = self._cursors.setdefault(frame.thread_id, Cursor(frame.seq - 1))
        step = cursor.step(frame.seq)
        if step == "repeated":
            witness.tally.repeat(frame)
            return
        if step == "gap":
            witness.tally.gap(frame.thread_id, cursor.seq + 1, frame.seq - 1)
            cursor.seq = frame.seq
        self._take_end(frame)

    def _take_end(self, frame: Frame) -> None:
        """A run ends once, and nothing of it follows, on whichever stream and however often it is replayed."""
        ends = self._witness.ends
        if frame.ends_run:
            if ends.setdefault(frame.run_id, frame.seq) != frame.seq:
                self._witness.tally.error("a run that ended twice")
        elif frame.seq > ends.get(frame.run_id, frame.seq):
            self._witness.tally.error("an event after the end of its run")
