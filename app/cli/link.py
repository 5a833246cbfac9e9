"""One conversation kept connected: every event once and in order, whatever happens to the sockets."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

import attrs
import msgspec
import trio

from app.cli.connection import Connection, open_connection
from app.cli.failures import ABNORMAL, NOT_NOW, ClientError, Closed, Refused, Unreachable
from app.cli.frames import Cursor, Frame, decode

if TYPE_CHECKING:
    from app.cli.credentials import Credentials

FIRST_DELAY: Final = 0.25
LONGEST_DELAY: Final = 15.0
NOTICED_SECONDS: Final = 3.0
"""A wait that is worth a word, after the first one."""

HEARTBEAT_SECONDS: Final = 15.0
"""Half of how long a server may take for its first frame, which says how often to ask whether it is there."""

OUTGOING: Final = 32
"""Frames that may wait for the socket; a person at a terminal never has more than three."""

FINAL_CODES: Final = frozenset({1002, 1007, 1008, 1009, 4403})
"""Close codes after which another try would end the same way."""


class Listener(Protocol):
    """Who is told what arrives. All three are called in the reader's task and must not block."""

    def on_frame(self, frame: Frame, raw: bytes) -> None:
        """Take an event of the followed thread, or an `accepted` or `error` frame."""

    def on_status(self, text: str) -> None:
        """Take a sentence about the connection."""

    def on_gap(self, last_seq: int) -> None:
        """Take note that events up to `last_seq` cannot be had any more."""


@attrs.define
class Backoff:
    """Seconds to wait between attempts: doubling, capped, and never the same for two clients."""

    attempts: int = 0

    def next(self) -> float:
        """Return the next wait."""
        ceiling = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(self.attempts, 16))
        self.attempts += 1
        return ceiling * random.uniform(0.5, 1.0)  # noqa: S311  # jitter is no secret


class Link:
    """Follows one thread of one account.

    What must not be lost with a socket is state here, not a frame on its way: the messages not yet
    accepted, the runs to be cancelled, the answers to their questions, and the cursor. A new socket is given
    all of it again; the server recognises a repeated message by its `client_id`.
    """

    _listener: Listener  # as long as it runs

    def __init__(self, url: str, credentials: Credentials, *, patience: float) -> None:
        self._url = url
        self._credentials = credentials
        self._patience = patience
        self._backoff = Backoff()
        self._down_since: float | None = None
        self._unaccepted: dict[str, Mapping[str, object]] = {}
        self._cancelling: set[str] = set()
        self._deciding: dict[tuple[str, str], Mapping[str, object]] = {}
        self._outgoing: trio.MemorySendChannel[Mapping[str, object]] | None = None
        self._subscribed = False
        self._heartbeat = HEARTBEAT_SECONDS
        self._established = trio.Event()
        self.thread_id = ""
        self.cursor = Cursor(0)

    # -- what the conversation asks for: never blocks ------------------------------------------------

    def follow(self, thread_id: str, after: int) -> None:
        """Turn to a thread, from behind event `after` on."""
        self.thread_id = thread_id
        self.cursor = Cursor(after)
        self._subscribe()

    def ask(self, client_id: str, content: str, agent: str | None, *, on_conflict: str | None = None) -> None:
        """Send a message, now or as soon as there is a socket, and until the server has accepted it."""
        frame: dict[str, object] = {
            "type": "user_message",
            "thread_id": self.thread_id,
            "content": content,
            "client_id": client_id,
        }
        if agent is not None:
            frame["agent"] = agent
        if on_conflict is not None:
            frame["on_conflict"] = on_conflict
        self._unaccepted[client_id] = frame
        self._post(frame)

    def ask_again(self, client_id: str) -> None:
        """Repeat a message that the server could not take at the time."""
        if client_id in self._unaccepted:
            self._post(self._unaccepted[client_id])

    def forget(self, client_id: str) -> None:
        """Stop sending a message: it is accepted, or it never will be."""
        self._unaccepted.pop(client_id, None)

    def cancel(self, run_id: str) -> None:
        """Ask for the end of a run, until it has ended."""
        self._cancelling.add(run_id)
        self._post({"type": "cancel", "run_id": run_id})

    def decide(self, decision: str, run_id: str, call_id: str) -> None:
        """Answer a question about a tool call, until the answer is in the log."""
        frame = {"type": decision, "run_id": run_id, "call_id": call_id}
        self._deciding[run_id, call_id] = frame
        self._post(frame)

    # -- the socket -----------------------------------------------------------------------------------

    async def run(self, listener: Listener) -> None:
        """Keep a socket open until cancelled, and tell `listener` what arrives.

        Raises:
            ClientError: the server will not have us, or it was away for longer than `patience` seconds.
        """
        self._listener = listener
        while True:
            try:
                async with open_connection(self._url, await self._credentials.token()) as connection:
                    ended = await self._serve(connection)
            except (Refused, Unreachable, Closed) as lost:
                ended = lost
            if isinstance(ended, Closed) and ended.code in FINAL_CODES:
                raise ended
            if isinstance(ended, Refused) and ended.status not in NOT_NOW | {401}:
                raise ended
            if (isinstance(ended, Closed) and ended.code == 4401) or (
                isinstance(ended, Refused) and ended.status == 401
            ):
                self._credentials.expire()
            await self._pause(ended)

    async def _serve(self, connection: Connection) -> ClientError:
        """Run one socket and say how it ended."""
        if self._backoff.attempts:
            self._listener.on_status("connected again")
        self._backoff = Backoff()
        self._down_since = None
        self._established = trio.Event()
        self._outgoing, waiting = trio.open_memory_channel[Mapping[str, object]](OUTGOING)
        self._subscribe()
        for frame in self._unaccepted.values():
            self._post(frame)
        for run_id in self._cancelling:
            self._post({"type": "cancel", "run_id": run_id})
        for frame in self._deciding.values():
            self._post(frame)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, connection, waiting)
                nursery.start_soon(self._beat)
                ended = await self._read(connection)
                nursery.cancel_scope.cancel()
        finally:
            self._outgoing = None
            self._subscribed = False
        return ended

    async def _read(self, connection: Connection) -> ClientError:
        while True:
            with trio.move_on_after(2.0 * self._heartbeat):
                try:
                    for raw in await connection.receive():
                        self._take(decode(raw), raw)
                except Closed as closed:
                    return closed
                except ValueError as exc:
                    return Unreachable(f"a frame that is not of this protocol ({exc})")
                continue
            return Closed(ABNORMAL, f"nothing was heard for {2.0 * self._heartbeat:.0f} s")

    async def _write(
        self, connection: Connection, waiting: trio.MemoryReceiveChannel[Mapping[str, object]]
    ) -> None:
        # Only this task sends, and it is cancelled only together with its socket.
        try:
            async for frame in waiting:
                await connection.send(msgspec.json.encode(frame))
        except Closed:
            return  # the reader sees it too, and says so

    async def _beat(self) -> None:
        # The server pings by itself; our own question is how we learn of a peer that is gone.
        await self._established.wait()
        while True:
            await trio.sleep(self._heartbeat)
            self._post({"type": "ping"})

    def _take(self, frame: Frame, raw: bytes) -> None:
        if frame.is_event:
            self._take_event(frame, raw)
        elif frame.type == "subscribed" and frame.thread_id == self.thread_id:
            if not frame.recovered:
                self.cursor.seq = frame.last_seq
                self._listener.on_gap(frame.last_seq)
            self._subscribed = frame.recovered is False or frame.after == self.cursor.seq
        elif frame.type == "connection_established":
            self._heartbeat = frame.heartbeat_seconds or HEARTBEAT_SECONDS
            self._established.set()
        elif frame.type in {"accepted", "error"}:
            self._listener.on_frame(frame, raw)

    def _take_event(self, frame: Frame, raw: bytes) -> None:
        # Live events of every thread arrive from the first moment on. Until the subscription is answered
        # they are ignored: the replay brings them.
        if frame.thread_id != self.thread_id or not self._subscribed:
            return
        step = self.cursor.step(frame.seq)
        if step == "gap":
            self._listener.on_status(f"event {self.cursor.seq + 1} is missing; asking for it again")
            self._subscribe()
        elif step == "next":
            if frame.ends_run:
                self._cancelling.discard(frame.run_id)
                for key in [key for key in self._deciding if key[0].startswith(frame.run_id)]:
                    del self._deciding[key]  # of operations inside the run, too
            elif frame.type == "approval_resolved":
                self._deciding.pop((frame.run_id, str(frame.payload.get("call_id"))), None)
            self._listener.on_frame(frame, raw)

    def _subscribe(self) -> None:
        self._subscribed = False
        if self.thread_id:
            self._post({"type": "subscribe", "thread_id": self.thread_id, "after": self.cursor.seq})

    def _post(self, frame: Mapping[str, object]) -> None:
        if self._outgoing is None:
            return  # there is no socket; the next one is told everything
        try:
            self._outgoing.send_nowait(frame)
        except trio.WouldBlock:
            self._listener.on_status("the server takes nothing at present")

    async def _pause(self, ended: ClientError) -> None:
        now = trio.current_time()
        if self._down_since is None:
            self._down_since = now
        wait = self._backoff.next()
        if isinstance(ended, Refused) and ended.retry_after is not None:
            wait = max(wait, ended.retry_after)
        if now + wait - self._down_since > self._patience:
            raise ended
        if self._backoff.attempts == 1 or wait >= NOTICED_SECONDS:
            self._listener.on_status(f"{ended}; trying again in {wait:.1f} s")
        await trio.sleep(wait)
