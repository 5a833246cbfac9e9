"""What a user does over sockets: chats, cancels, conflicts, lost sockets, slow sockets, broken frames."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from app.cli.failures import Closed
from app.cli.frames import Frame, decode
from app.cli.load import Order
from app.cli.soak.caller import Unexpected
from app.cli.soak.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.cli.connection import Connection
    from app.cli.soak.caller import Caller
    from app.cli.soak.chat import Asked, Chat
    from app.cli.soak.tap import Witness

HEAVY: Final = Order(events=200, queries=0, delta_bytes=1024, sleep_ms=0)
"""What a slow socket is given to carry, several times."""

HEAVY_RUNS: Final = 3
SLOW_READS: Final = 20
"""How often a slow socket's reader pauses, for up to half a second, before it catches up."""

DROPPED: Final = frozenset({1006, 1013, 4408})
"""How a server may part with a socket that is not read: too slow, no heartbeat, or no farewell that it would hear."""

TOO_BIG: Final = b'"' + b"x" * 300_000 + b'"'
REPLAY_SECONDS: Final = 60.0

BROKEN: Final = (
    (b"{", "bad_json"),
    (b"[" * 5000, "bad_json"),
    (b'{"type":"ping","type":"ping"}', "bad_json"),
    (b'{"type":"dance"}', "unknown_type"),
    (b'{"type":"ping","user_id":"somebody"}', "bad_frame"),
    (b'{"type":"subscribe","thread_id":"%(thread)s","after":"x"}', "bad_frame"),
    (b'{"type":"subscribe","thread_id":"no-such-thread","after":0}', "not_found"),
    (b'{"type":"subscribe","thread_id":"%(foreign)s","after":0}', "not_found"),
    (b'{"type":"user_message","thread_id":"%(foreign)s","content":"hello"}', "not_found"),
    (b'{"type":"cancel","run_id":"%(foreign)s"}', "not_found"),
)
"""Frames that must be refused, each with its code, after which the socket goes on."""


class SocketLife:
    """One user's ways with sockets. Every method is one thing that they do, from beginning to end."""

    def __init__(
        self, chat: Chat, caller: Caller, witness: Witness, foreign_thread: Callable[[], str]
    ) -> None:
        self._chat = chat
        self._caller = caller
        self._witness = witness
        self._foreign_thread = foreign_thread

    async def chat(self) -> None:
        """Ask the assistant something, with tools or without."""
        canary = self._witness.canary
        content = random.choice(
            (
                f"my word is {canary}",
                f"my word is {canary}\ncalculate 6 * 7",
                f"search {canary}\ntime\ncalculate 2 ** 10 / 3",
                f"time\nsearch word {canary}",
            )
        )
        await self._complete(self._chat.ask(content, "assistant"))

    async def load(self) -> None:
        """Ask for an answer of some size, with queries and pauses."""
        await self._complete(self._chat.ask(load_order(), "load"))

    async def cancel(self) -> None:
        """Cancel a run in its middle."""
        asked = self._chat.ask(load_order(sleep_ms=5000), "load")
        await asked.accepted.wait()
        await trio.sleep(random.uniform(0, 0.3))
        self._chat.link.cancel(asked.run_id)
        await self._end(asked, "run_cancelled")

    async def conflict(self) -> None:
        """Ask while a run is active: be refused, wait, or take its place."""
        way = random.choice(("reject", "enqueue", "interrupt", "rollback"))
        first = self._chat.ask(load_order(sleep_ms=300 if way == "enqueue" else 5000), "load")
        await first.accepted.wait()
        second = self._chat.ask(self._witness.canary, "assistant", on_conflict=way)
        if way == "reject":
            await self._end(second, "conflict")
            self._chat.link.cancel(first.run_id)
        await self._end(first, "agent_completed" if way == "enqueue" else "run_cancelled")
        if way != "reject":
            await self._complete(second)

    async def lose(self) -> None:
        """Lose the socket at any moment of a run, which goes on; resume without a gap or a repeat."""
        asked = self._chat.ask(load_order(events=200, sleep_ms=200), "load")
        for _ in range(random.randint(1, 3)):
            await trio.sleep(random.uniform(0, 0.4))
            await self._chat.link.lose()
        await self._complete(asked)

    async def read_slowly(self) -> None:
        """Leave a socket unread while much comes, then read it slowly; resume if it was closed meanwhile."""
        thread = await self._caller.thread()
        closed: Closed | None = None
        async with self._caller.socket() as connection:
            tap = Tap(self._witness)
            tap.expect(thread, 0)
            order = msgspec.json.encode(HEAVY).decode()
            for _ in range(HEAVY_RUNS):
                body = {"content": order, "agent": "load"}
                await self._caller.call("POST", f"/v1/threads/{thread}/runs?wait=true", body)
            last_seq = (await self._caller.call("GET", f"/v1/threads/{thread}"))["last_seq"]
            try:
                await self._read_to(connection, tap, thread, last_seq)
            except Closed as why:
                closed = why
        if closed is not None:
            await self._resume(thread, tap.seen(thread), last_seq, closed)

    async def break_frames(self) -> None:
        """Send what nobody should: each is refused with its code, and the socket lives; too big ends it."""
        ids = {b"thread": self._chat.link.thread_id.encode(), b"foreign": self._foreign_thread().encode()}
        async with self._caller.socket() as connection:
            tap = Tap(self._witness)
            for frame, code in BROKEN:
                await connection.send(frame % ids if b"%(" in frame else frame)
                answer = await self._answer(connection, tap)
                if answer.code != code:
                    raise Unexpected(f"{answer.code or answer.type} in place of {code}")
            await connection.send(b'{"type":"ping"}')
            if (await self._answer(connection, tap)).type != "pong":
                raise Unexpected("no pong after broken frames")
            try:
                await connection.send(TOO_BIG)
                while True:
                    await self._answer(connection, tap)
            except Closed as closed:
                if closed.code not in {1009, 1006}:  # it may be gone before it is heard
                    raise

    async def _resume(self, thread: str, after: int, last_seq: int, closed: Closed) -> None:
        if closed.code not in DROPPED:
            raise closed
        async with self._caller.socket() as connection:
            tap = Tap(self._witness)
            await connection.send(
                msgspec.json.encode({"type": "subscribe", "thread_id": thread, "after": after})
            )
            while (await self._next(connection, tap))[-1].type != "subscribed":
                pass
            await self._read_to(connection, tap, thread, last_seq)

    async def _read_to(self, connection: Connection, tap: Tap, thread: str, last_seq: int) -> None:
        with trio.move_on_after(REPLAY_SECONDS) as scope:
            pauses = SLOW_READS
            while tap.seen(thread) < last_seq:
                await self._next(connection, tap)
                if pauses:
                    pauses -= 1
                    await trio.sleep(random.uniform(0, 0.5))
        if scope.cancelled_caught:
            raise Unexpected("events that did not come")

    async def _answer(self, connection: Connection, tap: Tap) -> Frame:
        """Return the next frame that is no event, nor the greeting."""
        while True:
            for frame in await self._next(connection, tap):
                if not frame.is_event and frame.type != "connection_established":
                    return frame

    async def _next(self, connection: Connection, tap: Tap) -> list[Frame]:
        frames = []
        for raw in await connection.receive():
            frame = decode(raw)
            tap.take(frame, raw)
            frames.append(frame)
        return frames

    async def _complete(self, asked: Asked) -> None:
        started = trio.current_time()
        await self._end(asked, "agent_completed")
        self._witness.tally.turns += 1
        self._witness.tally.completion.append(trio.current_time() - started)

    async def _end(self, asked: Asked, outcome: str) -> None:
        await asked.ended.wait()
        if asked.outcome != outcome:
            raise Unexpected(f"{asked.outcome} in place of {outcome}")


def load_order(*, events: int | None = None, sleep_ms: int | None = None) -> str:
    """Return an order for the `load` agent; what is not given is of a size that people cause."""
    order = Order(
        events=random.randint(5, 120) if events is None else events,
        queries=random.randint(0, 5),
        delta_bytes=random.randint(40, 400),
        sleep_ms=random.randint(0, 500) if sleep_ms is None else sleep_ms,
    )
    return msgspec.json.encode(order).decode()
