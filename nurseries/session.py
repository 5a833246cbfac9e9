"""One client socket: its reader, its writer, its requests.

    outer nursery      writer, and the worker that handles frames one after the other
      inner nursery    the requests that end with this socket
        reader         always reading, so that a disconnect is seen at once

The writer stands one nursery outside the requests, so that a cancelled request can still say so. The worker
exists only while there are frames: an idle socket costs a reader and a writer.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from nurseries.cleanup import cleanup_scope
from nurseries.errors import Misdelivery, NurseriesError
from nurseries.events import Event, verify
from nurseries.inbox import Inbox
from nurseries.resume import SETTLE_SECONDS, Resume
from nurseries.serving import SocketClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from nurseries.events import Outbox
    from nurseries.isolation import Isolation
    from nurseries.resume import History
    from nurseries.serving import WebSocket

    OnFrame = Callable[["Session", str | bytes], Awaitable[None]]

logger = structlog.get_logger(__name__)


class Session:
    """One socket of one user, from the upgrade to the close.

    Attributes:
        id: what the protocol calls the connection id.
        user_id: whose socket it is; no event of another user leaves through it.
        requests: the nursery of the requests that end with the socket.
        tasks: the nursery around it, of the session's own tasks; None before `run`.
        opened_at: `trio.current_time()` at the start.
    """

    __slots__ = (
        "__weakref__",
        "_by_peer",
        "_close",
        "_inbox",
        "_isolation",
        "_outbox",
        "_reading",
        "_resume",
        "_sending",
        "_settling",
        "_socket",
        "id",
        "opened_at",
        "requests",
        "tasks",
        "user_id",
    )

    def __init__(
        self,
        socket: WebSocket,
        outbox: Outbox,
        *,
        session_id: str,
        isolation: Isolation,
        expires_in: float | None = None,
    ) -> None:
        self.id = session_id
        self.user_id = outbox.user_id
        self.opened_at = trio.current_time()
        self.requests: trio.Nursery
        self.tasks: trio.Nursery | None = None
        self._isolation = isolation
        self._socket = socket
        self._outbox = outbox
        self._resume = Resume()
        self._inbox = Inbox()
        self._settling = trio.CancelScope()  # in it the writer waits for what settles the session
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()
        if expires_in is not None:
            self._reading.deadline = trio.current_time() + expires_in
        self._close: tuple[int, str] | None = None
        self._by_peer = False

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._socket.peer

    @property
    def closed_with(self) -> int | None:
        """The code that it ended with on our side; None before, and where the client ended it."""
        return None if self._close is None or self._by_peer else self._close[0]

    def close(self, code: int, reason: str = "") -> None:
        """End the session with this close code; returns at once, `run` does the rest. The first code counts."""
        if self._close is None:
            self._close = (code, reason)
        self._reading.cancel()

    async def answer(self, data: bytes) -> None:
        """Send a message to this socket alone, in order with its events, waiting while the outbox is full.

        A `nurseries.serving.Binary` goes out as binary, plain bytes as text.
        """
        try:
            await self._outbox.send(data)
        except trio.ClosedResourceError:
            await trio.lowlevel.checkpoint()  # the session is ending: there is nobody to answer

    async def run(self, on_frame: OnFrame) -> None:
        """Serve the socket until it closes, and return when all that the session owned has ended."""
        try:
            async with trio.open_nursery() as outer:
                self.tasks = outer
                outer.start_soon(self._write)
                try:
                    async with trio.open_nursery() as self.requests:
                        await self._read(outer, on_frame)
                        self.requests.cancel_scope.cancel()
                        await self._finish_frames()
                finally:
                    with cleanup_scope():
                        # A send that is cut short would end the socket without its last frames and its code.
                        async with self._sending:
                            outer.cancel_scope.cancel()
                    outer.cancel_scope.cancel()
        finally:
            await self._hang_up()

    def settle(self) -> None:
        """The client showed that it does not begin by subscribing: what waited for that may go out."""
        if not self._resume.settled:
            self._resume.settled = True
            self._settling.cancel()

    async def replay(
        self, thread_id: str, after: int, history: History, subscribed: Callable[[int, bool], bytes]
    ) -> None:
        """Send what the thread's log holds after `after`, then go on live, without a gap or a repeat.

        Args:
            thread_id: the thread.
            after: the number of the last event that the client has seen.
            history: reads the log as this user.
            subscribed: makes the first answer from the log's last number and whether `after` can be honoured.
        """
        self._resume.hold(thread_id)
        try:
            last_seq = await history.last_seq(thread_id)
        except NurseriesError:
            await self._release(thread_id, 0)
            raise
        recovered = 0 <= after <= last_seq
        await self._send([subscribed(last_seq, recovered)])
        cursor = after if recovered else last_seq
        try:
            while cursor < last_seq or self._resume.overflowed(thread_id):
                events = await history.read(thread_id, cursor)
                await self._send(self._checked(events))
                cursor = events[-1].seq if events else last_seq
                last_seq = (
                    max(last_seq, await history.last_seq(thread_id)) if cursor >= last_seq else last_seq
                )
        except NurseriesError as error:
            # Going on would leave a gap. The client comes back and resumes from what it has seen.
            logger.warning("replay broke off", connection_id=self.id, error=repr(error))
            self.close(1013, "the log could not be read: resume by seq")
        else:
            await self._release(thread_id, cursor)

    async def _release(self, thread_id: str, cursor: int) -> None:
        """Make the thread live. Under the lock, so that no newer event overtakes those that were held."""
        async with self._sending:
            await self._send_locked(self._checked(self._resume.release(thread_id, cursor)))

    # -- reading -----------------------------------------------------------------------------------

    async def _read(self, outer: trio.Nursery, on_frame: OnFrame) -> None:
        try:
            with self._reading:
                while True:
                    frame = await self._socket.receive()
                    if self._inbox.full:
                        await self._room()
                    if self._inbox.put(frame):
                        outer.start_soon(self._work, on_frame)
        except SocketClosed as closed:
            self._left(closed)
        if self._close is None:  # only the deadline ends reading without a word
            self._close = (4401, "the access token has expired")

    def _left(self, closed: SocketClosed) -> None:
        if self._close is None:
            self._close, self._by_peer = (closed.code, ""), closed.by_peer

    async def _room(self) -> None:
        """Wait until the worker has taken a frame, or the client has left. Meanwhile TCP slows the client."""

        async def leave() -> None:
            await self._socket.wait_left()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            await self._inbox.change()
            nursery.cancel_scope.cancel()

    async def _work(self, on_frame: OnFrame) -> None:
        try:
            await self._inbox.work(partial(on_frame, self))
        except SocketClosed as closed:
            self._left(closed)
            self._reading.cancel()
        except Exception:
            logger.exception("frame handler failed", connection_id=self.id)
            self.close(1011, "internal error")

    async def _finish_frames(self) -> None:
        """Let frames that arrived before a close be handled: their sender has left and expects no less."""
        with cleanup_scope():
            while not self._inbox.idle and self._may_finish():
                await self._inbox.change()

    def _may_finish(self) -> bool:
        return self._close is not None and self._close[0] in {1000, 1001, 1005, 1006}

    # -- writing -----------------------------------------------------------------------------------

    async def _write(self) -> None:
        settle_at = trio.current_time() + SETTLE_SECONDS
        try:
            while not self._resume.settled:
                items: Sequence[Event | bytes] = ()
                # Only the waiting is cut short: a send that is would end the socket.
                with trio.CancelScope(deadline=settle_at) as self._settling:
                    items = await self._outbox.take()
                if self._settling.cancelled_caught and not self._resume.settled:
                    self._resume.settled = self._inbox.idle
                    settle_at = trio.current_time() + SETTLE_SECONDS
                await self._deliver(items)
            await self._deliver(())  # what waited for this
            while True:
                await self._deliver(await self._outbox.take())
        except trio.EndOfChannel:
            self.close(1013, "too slow: come back and resume by seq")
        except SocketClosed as closed:
            self._left(closed)
            self._reading.cancel()

    async def _deliver(self, items: Iterable[Event | bytes]) -> None:
        async with self._sending:
            await self._send_locked(self._admitted(items))

    async def _send(self, frames: Sequence[bytes]) -> None:
        async with self._sending:
            await self._send_locked(frames)

    async def _send_locked(self, frames: Sequence[bytes]) -> None:
        if frames:
            await self._socket.send(frames)

    def _admitted(self, items: Iterable[Event | bytes]) -> list[bytes]:
        admit = self._resume.admit
        live = [item for item in items if isinstance(item, bytes) or admit(item)]
        return self._checked([*self._resume.early(), *live])

    def _checked(self, items: Iterable[Event | bytes]) -> list[bytes]:
        frames = []
        for item in items:
            if isinstance(item, bytes):
                frames.append(item)
                continue
            try:
                verify(item, self.user_id)
            except Misdelivery:
                self._isolation.misdelivery_prevented(self.id, item)
            else:
                frames.append(item.data)
        return frames

    async def _hang_up(self) -> None:
        """Send what still waits, then close with the code that ended the session."""
        code, reason = self._close or (1012, "the server is going down")
        with cleanup_scope():
            try:
                await self._send(self._admitted(self._outbox.take_nowait()))
                await self._socket.close(code, reason)
            except SocketClosed:
                pass  # the peer left first, which is as good an end
