"""Users that a load run plays: each checks every event that reaches it."""

from __future__ import annotations

import random
from array import array
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from app.cli.failures import Closed, NoSuchAgent
from app.cli.frames import Cursor, Frame, checksum, decode

if TYPE_CHECKING:
    from app.cli.client import Api
    from app.cli.connection import Connection

LOAD_AGENT: Final = "load"

TURN_SECONDS: Final = 120.0
"""How long a turn may take before it counts as an error."""

EXAMPLES: Final = 10
"""How many faults are kept word for word; all are counted."""

BURST_SECONDS: Final = 10.0
"""How much of a minute's frames may be sent at once; the server's default allowance is a little more."""


async def require_load_agent(api: Api, token: str) -> None:
    """See that the server can be measured.

    Raises:
        NoSuchAgent: it does not offer the `load` agent.
    """
    if LOAD_AGENT not in await api.agents(token):
        raise NoSuchAgent(
            "the server has no `load` agent: start it with --load-agent or NURSERIES_LOAD_AGENT=true"
        )


@attrs.frozen
class Order:
    """What the `load` agent is told to do in each turn; see the protocol's built-in agents."""

    events: int
    queries: int
    delta_bytes: int
    sleep_ms: int

    @property
    def characters(self) -> int:
        """How long the whole answer is."""
        return self.events * self.delta_bytes


@attrs.define(eq=False)
class Tally:
    """What happened to the users of one phase. Latencies are in seconds."""

    turns: int = 0
    events: int = 0
    misdelivered: int = 0
    lost: int = 0
    repeated: int = 0
    paced: int = 0
    errors: Counter[str] = attrs.field(factory=Counter)
    examples: list[str] = attrs.field(factory=list)
    first_event: array[float] = attrs.field(factory=lambda: array("d"))
    completion: array[float] = attrs.field(factory=lambda: array("d"))

    def error(self, what: str) -> None:
        """Count something that went wrong."""
        self.errors[what] += 1

    def misdelivery(self, frame: Frame, why: str) -> None:
        """Count an event that is not for whom it reached."""
        self.misdelivered += 1
        self._example(f"misdelivered {frame.type} {frame.event_id}: {why}")

    def misdelivered_data(self, what: str, mark: str) -> None:
        """Count something that carries what is somebody else's."""
        self.misdelivered += 1
        self._example(f"misdelivered {what}: it holds {mark}")

    def gap(self, thread_id: str, first: int, last: int) -> None:
        """Count events that did not arrive."""
        self.lost += last - first + 1
        self._example(f"lost {thread_id}:{first} to {last}")

    def repeat(self, frame: Frame) -> None:
        """Count an event that had arrived before."""
        self.repeated += 1
        self._example(f"repeated {frame.event_id}")

    def add_faults(self, other: Tally) -> None:
        """Add what went wrong for others, so that one verdict covers all."""
        self.misdelivered += other.misdelivered
        self.lost += other.lost
        self.repeated += other.repeated
        self.errors.update(other.errors)
        self.examples = [*self.examples, *other.examples][:EXAMPLES]

    def _example(self, text: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(text)


@attrs.define(eq=False)
class Turn:
    """One message that was sent and what has come of it."""

    sent_at: float
    first_at: float | None = None
    run_id: str = ""
    checksum: str = ""
    characters: int = 0
    fault: str | None = None
    ended: trio.Event = attrs.field(factory=trio.Event)


class Pace:
    """Keeps a socket within the frames a minute that its server announced (GCRA, as in ITU-T I.371)."""

    def __init__(self, frames_per_minute: float) -> None:
        self._interval = 60.0 / frames_per_minute
        self._next = 0.0

    def delay(self, now: float) -> float:
        """Book one frame and return the seconds to wait before it may be sent."""
        self._next = max(self._next, now) + self._interval
        return max(0.0, self._next - now - BURST_SECONDS)


class Seat:
    """One user at one socket, playing at most one turn at a time in each of their threads.

    Attributes:
        user_id: whose events may arrive here: the canary in every text of theirs.
        cursors: how far each thread has been seen.
        tally: where things are counted; replaced between phases.
    """

    def __init__(
        self, connection: Connection, user_id: str, threads: dict[str, int], order: Order, tally: Tally
    ) -> None:
        self._connection = connection
        self._order = order
        self._content = msgspec.json.encode(order).decode()
        self._turns: dict[str, Turn] = {}
        self._unaccepted: deque[Turn] = deque()
        self._accepted: set[str] = set()
        self._ended: set[str] = set()
        self._pace: Pace | None = None
        self._closed: Closed | None = None
        self._stopping = False
        self.user_id = user_id
        self.cursors = {thread_id: Cursor(seq) for thread_id, seq in threads.items()}
        self.tally = tally

    async def play(self, thread_id: str, turns: int, pause: float) -> None:
        """Play turns one after the other, back to back or with a pause of `pause` seconds after each."""
        if pause:
            await trio.sleep(random.uniform(0, pause))  # noqa: S311  # people do not start in the same instant
        for _ in range(turns):
            await self.turn(thread_id)
            if self._stopping or self._closed is not None:
                return  # what was closed is counted as an error, and the missing turns show how early it was
            if pause:
                await trio.sleep(pause)

    def stop(self) -> None:
        """Play no more turns than those that are being played."""
        self._stopping = True

    async def turn(self, thread_id: str) -> None:
        """Play one turn and count what came of it."""
        message = msgspec.json.encode(
            {"type": "user_message", "thread_id": thread_id, "content": self._content, "agent": LOAD_AGENT}
        )
        if self._pace is not None and (delay := self._pace.delay(trio.current_time())):
            self.tally.paced += 1
            await trio.sleep(delay)
        if self._closed is not None:
            return
        turn = self._turns[thread_id] = Turn(trio.current_time())
        self._unaccepted.append(turn)
        try:
            with trio.move_on_after(TURN_SECONDS) as scope:
                with suppress(Closed):  # the reader settles every turn that is open
                    await self._connection.send(message)
                await turn.ended.wait()
        finally:
            del self._turns[thread_id]
        if scope.cancelled_caught:
            turn.fault = f"no end within {TURN_SECONDS:.0f} s"
        if turn.fault is not None:
            self.tally.error(turn.fault)

    async def read(self) -> None:
        """Take in everything that arrives, until the socket is closed or we are cancelled."""
        try:
            while True:
                messages = await self._connection.receive()
                now = trio.current_time()
                for message in messages:
                    self._take(decode(message), now)
        except (Closed, ValueError) as exc:
            self._closed = exc if isinstance(exc, Closed) else Closed(1002, str(exc))
            self.tally.error(str(self._closed))
            for turn in self._turns.values():
                turn.fault = "no end before the socket was closed"
                turn.ended.set()

    def finish(self, last_seqs: dict[str, int]) -> None:
        """Compare what was seen with what the server says there is, and what ran with what was accepted."""
        for thread_id, last_seq in last_seqs.items():
            seen = self.cursors[thread_id].seq
            if last_seq > seen:
                self.tally.gap(thread_id, seen + 1, last_seq)
        for _ in self._ended - self._accepted:
            self.tally.error("a run that was never accepted")

    def _take(self, frame: Frame, now: float) -> None:
        if frame.is_event:
            self._take_event(frame, now)
        elif frame.type == "accepted":
            self._accepted.add(frame.run_id)
            if self._unaccepted:
                self._unaccepted.popleft()
        elif frame.type == "error":
            if self._unaccepted:  # a socket's messages are answered in their order
                turn = self._unaccepted.popleft()
                turn.fault = frame.code
                turn.ended.set()
            else:
                self.tally.error(frame.code)
        elif frame.type == "connection_established":
            self._pace = Pace(float(frame.limits.get("messages_per_minute", 600)))
            if frame.user_id != self.user_id:
                self.tally.misdelivery(frame, f"a socket of {frame.user_id}")

    def _take_event(self, frame: Frame, now: float) -> None:
        tally = self.tally
        tally.events += 1
        cursor = self.cursors.get(frame.thread_id)
        if frame.user_id != self.user_id or cursor is None:
            tally.misdelivery(frame, f"of user {frame.user_id}, thread {frame.thread_id}")
            return
        step = cursor.step(frame.seq)
        if step == "repeated":
            tally.repeat(frame)
            return
        if step == "gap":
            tally.gap(frame.thread_id, cursor.seq + 1, frame.seq - 1)
            cursor.seq = frame.seq
        turn = self._turns.get(frame.thread_id)
        if frame.run_id in self._ended:
            tally.error("an event after the end of its run")
        elif turn is not None:
            self._take_event_of(turn, frame, now)

    def _take_event_of(self, turn: Turn, frame: Frame, now: float) -> None:
        if turn.first_at is None:
            turn.first_at = now
            turn.run_id = frame.run_id
            turn.checksum = checksum(self.user_id, frame.thread_id, frame.run_id)
        if frame.run_id != turn.run_id or frame.delivery_checksum != turn.checksum:
            self.tally.misdelivery(frame, f"run {frame.run_id}, checksum {frame.delivery_checksum}")
        if frame.type == "message_delta":
            text = str(frame.payload.get("text", ""))
            turn.characters += len(text)
            if not text.startswith(self.user_id[: len(text)]):
                self.tally.misdelivery(frame, f"its text begins with {text[:36]!r}")
        elif frame.ends_run:
            self._end(turn, frame, now)

    def _end(self, turn: Turn, frame: Frame, now: float) -> None:
        self._ended.add(frame.run_id)
        if frame.type != "agent_completed":
            turn.fault = f"{frame.type} {frame.payload.get('code', '')}".strip()
        elif turn.characters != self._order.characters:
            turn.fault = "an answer of another length"
        else:
            assert turn.first_at is not None
            self.tally.turns += 1
            self.tally.first_event.append(turn.first_at - turn.sent_at)
            self.tally.completion.append(now - turn.sent_at)
        turn.ended.set()
