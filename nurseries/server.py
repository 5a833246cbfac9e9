"""The root: services start in order, then the listener; everything drains in reverse.

    services        database, event log writer, janitor
      requests      those that outlive their socket
        listener    connections, and in them the sessions

Draining: readiness off and no new work, while everything that is there can still be read, watched and
cancelled; runs get `drain_seconds`, the rest is cancelled; sockets are closed with 1012, and connections when
they are answered; then the services end, the last started first. A second signal leaves out the waiting.
A service that fails takes the server down with its own error: half a server is worse than none.
"""

from __future__ import annotations

import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, Literal, Protocol

import structlog
import trio

from nurseries.cleanup import CLEANUP_SECONDS
from nurseries.errors import Draining, StartupFailed, TooManySessions
from nurseries.groups import alone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from nurseries.session import Session

    GiveUp = Callable[[Sequence[str]], None]

GIVE_UP_SECONDS: Final = 5 * CLEANUP_SECONDS
"""From the cancellation of what ran to the end of the last task, each of its steps having taken all its time."""

RETRY_AFTER_DRAIN: Final = 5.0
RETRY_AFTER_SESSIONS: Final = 5.0
logger = structlog.get_logger(__name__)


class Service(Protocol):
    """Runs until it is cancelled; calls `task_status.started()` when others may rely on it."""

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run."""


class Listener(Protocol):
    """Accepts connections. `nurseries.serving.Listener` is one."""

    async def serve(self, *, task_status: trio.TaskStatus[list[str]]) -> None:
        """Bind, report the URLs, serve until it was drained and the last connection has ended."""

    def drain(self) -> None:
        """Accept no more, and close what idles."""


class Work(Protocol):
    """Requests that a drain waits for."""

    async def wait_idle(self) -> None:
        """Return when none runs."""

    def cancel_all(self, reason: str) -> None:
        """Cancel those that run."""


class Sessions:
    """The sessions that are open now, and the places of those about to open."""

    def __init__(self) -> None:
        self._open: set[Session] = set()
        self._places: dict[str, int] = {}
        self._none_open = trio.Event()
        self._none_open.set()

    @contextmanager
    def place(self, user_id: str, limit: int) -> Iterator[None]:
        """Hold one of a user's places, from before the upgrade to the end of the socket.

        Raises:
            TooManySessions: the user holds `limit` of them.
        """
        if self._places.get(user_id, 0) >= limit:
            raise TooManySessions(f"at most {limit} sockets a user", retry_after=RETRY_AFTER_SESSIONS)
        self._places[user_id] = self._places.get(user_id, 0) + 1
        try:
            yield
        finally:
            self._places[user_id] -= 1
            if not self._places[user_id]:
                del self._places[user_id]

    @contextmanager
    def entered(self, session: Session) -> Iterator[None]:
        """Count the session as open for the body of the block."""
        self._open.add(session)
        if self._none_open.is_set():
            self._none_open = trio.Event()
        try:
            yield
        finally:
            self._open.remove(session)
            if not self._open:
                self._none_open.set()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._open))

    def close_all(self, code: int, reason: str) -> None:
        """Ask every session to end."""
        for session in self:
            session.close(code, reason)

    async def wait_none(self) -> None:
        """Return when none is open."""
        await self._none_open.wait()


class Server:
    """One process that serves.

    Attributes:
        state: what readiness reports.
        sessions: the open sockets.
        requests: the nursery of the requests that outlive their socket; set while the server runs.
    """

    def __init__(self, *, drain_seconds: float = 20.0, give_up: GiveUp | None = None) -> None:
        """Make a server.

        Args:
            drain_seconds: how long a drain waits for what runs.
            give_up: called with the names of the requests that have not ended where a drain cannot come to its
                end; by default it ends the process.
        """
        self.state: Literal["starting", "ready", "draining", "stopped"] = "starting"
        self.sessions = Sessions()
        self.requests: trio.Nursery
        self._drain_seconds = drain_seconds
        self._give_up = give_up or _end_process
        self._stop = trio.Event()
        self._patience = trio.CancelScope()
        self._cancelled = trio.Event()
        self._hurried = False
        self._closing = False
        self._endless: set[Callable[[], None]] = set()

    def stop(self) -> None:
        """Begin to drain, as the first signal does."""
        self._stop.set()

    def refuse_when_draining(self) -> None:
        """Raise `Draining` once the server takes no new work."""
        if self.state != "ready":
            raise Draining("the server is restarting", retry_after=RETRY_AFTER_DRAIN)

    @contextmanager
    def endless(self, end: Callable[[], None]) -> Iterator[None]:
        """Have `end` called when sockets are closed, for an answer over HTTP that has no end of its own."""
        self._endless.add(end)
        if self._closing:
            end()
        try:
            yield
        finally:
            self._endless.discard(end)

    async def run(
        self,
        services: Sequence[Service],
        listener: Listener,
        work: Work,
        *,
        ready: Callable[[list[str]], None],
    ) -> None:
        """Serve until `stop()` or a signal, then drain.

        Args:
            services: started in this order, each before the next; ended in reverse.
            listener: started last.
            work: the requests that a drain waits for.
            ready: called once with the bound URLs.

        Raises:
            StartupFailed: the listener cannot listen, or a service cannot start.
            KeyboardInterrupt: a signal came before the server was ready, or a second one after it was.
        """
        async with AsyncExitStack() as stack:
            for service in services:
                await stack.enter_async_context(_running(service))
            async with (
                self._bounded(),
                trio.open_nursery() as self.requests,
                trio.open_nursery() as listening,
            ):
                urls = await _bound(listening, listener)
                self.state = "ready"
                ready(urls)
                await self._stop.wait()
                await self._drain(listener, work)
                # Answers that are on their way get this long to arrive; then the connections are cut.
                listening.cancel_scope.deadline = trio.current_time() + CLEANUP_SECONDS
            if listening.cancel_scope.cancel_called:  # by the deadline
                logger.warning("connections were cut in the middle of an answer")
        self.state = "stopped"
        if self._hurried:
            raise KeyboardInterrupt

    async def _drain(self, listener: Listener, work: Work) -> None:
        self.state = "draining"
        logger.info("draining", seconds=self._drain_seconds)
        self._patience.deadline = trio.current_time() + self._drain_seconds
        with self._patience:
            await work.wait_idle()
        self._cancelled.set()
        work.cancel_all("shutdown")
        with trio.move_on_after(2 * CLEANUP_SECONDS):
            await work.wait_idle()
        listener.drain()  # not before: whoever asks for readiness or for a run's end is answered until then
        self._closing = True
        for end in tuple(self._endless):
            end()
        self.sessions.close_all(1012, "the server is restarting")
        with trio.move_on_after(2 * CLEANUP_SECONDS):
            await self.sessions.wait_none()

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """Give the body a bounded time once a drain has cancelled what ran.

        A task that swallows its cancellation, or shields itself for ever, can be ended by nothing but the end of
        the process. What it had in the database is then what a killed server leaves.
        """

        async def watch() -> None:
            await self._cancelled.wait()
            await trio.sleep(GIVE_UP_SECONDS)
            self._give_up(sorted(task.name for task in self.requests.child_tasks))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()

    async def stop_on_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Drain at the first SIGTERM or SIGINT, and without patience after the second. The outermost service.

        Before the server is ready, and after the second signal, one more ends everything where it stands.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                if self.state == "starting" or self._hurried:
                    raise KeyboardInterrupt  # what Ctrl-C means everywhere else
                if self._stop.is_set():
                    self._hurried = True
                    self._patience.cancel()
                self.stop()


def _end_process(names: Sequence[str]) -> None:
    logger.critical("what was cancelled does not end; leaving it behind", requests=names)
    os._exit(1)


async def _bound(nursery: trio.Nursery, listener: Listener) -> list[str]:
    """Start the listener and return its URLs."""
    try:
        with alone():
            urls: list[str] = await nursery.start(listener.serve)
    except OSError as error:
        raise StartupFailed(error.strerror or str(error)) from error
    return urls


@asynccontextmanager
async def _running(service: Service) -> AsyncIterator[None]:
    """Run a service for the body of the block; its failure cancels the body and comes out of the block.

    The service ends after the body, also where all is cancelled at once: the last events of the requests that
    are cancelled then still go into the log. What they may take for it is bounded by their own cleanup.
    """
    scope = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await service(task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        scope.shield = True
        try:
            yield
        finally:
            scope.cancel()
