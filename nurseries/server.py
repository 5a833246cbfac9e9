"""The root: services start in order, then the listener; everything drains in reverse.

    services        database, event log writer, janitor
      requests      those that outlive their socket
        listener    connections, and in them the sessions

Draining: readiness off and no new requests; running requests get `drain_seconds`, the rest is cancelled;
sockets are closed with 1012; then the services end, the last started first. A second signal ends at once.
A service that fails takes the server down with its own error: half a server is worse than none.
"""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, Literal, Protocol

import structlog
import trio

from nurseries.cleanup import CLEANUP_SECONDS
from nurseries.errors import Draining, TooManySessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from nurseries.session import Session

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
        """Bind, report the URLs, serve until cancelled."""

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

    def __init__(self, *, drain_seconds: float = 20.0) -> None:
        self.state: Literal["starting", "ready", "draining", "stopped"] = "starting"
        self.sessions = Sessions()
        self.requests: trio.Nursery
        self._drain_seconds = drain_seconds
        self._stop = trio.Event()

    def stop(self) -> None:
        """Begin to drain, as the first signal does."""
        self._stop.set()

    def refuse_when_draining(self) -> None:
        """Raise `Draining` once the server takes no new work."""
        if self.state != "ready":
            raise Draining("the server is restarting", retry_after=RETRY_AFTER_DRAIN)

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
        """
        async with AsyncExitStack() as stack:
            for service in services:
                await stack.enter_async_context(_running(service))
            async with trio.open_nursery() as self.requests, trio.open_nursery() as listening:
                urls = await listening.start(listener.serve)
                self.state = "ready"
                ready(urls)
                await self._stop.wait()
                await self._drain(listener, work)
                listening.cancel_scope.cancel()
        self.state = "stopped"

    async def _drain(self, listener: Listener, work: Work) -> None:
        self.state = "draining"
        logger.info("draining", seconds=self._drain_seconds)
        listener.drain()
        with trio.move_on_after(self._drain_seconds):
            await work.wait_idle()
        work.cancel_all("shutdown")
        with trio.move_on_after(2 * CLEANUP_SECONDS):
            await work.wait_idle()
        self.sessions.close_all(1012, "the server is restarting")
        with trio.move_on_after(2 * CLEANUP_SECONDS):
            await self.sessions.wait_none()

    async def stop_on_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Drain at the first SIGTERM or SIGINT, end at once at the second. The outermost service."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                if self._stop.is_set():
                    raise KeyboardInterrupt  # what a second Ctrl-C means everywhere else
                self.stop()


@asynccontextmanager
async def _running(service: Service) -> AsyncIterator[None]:
    """Run a service for the body of the block; its failure cancels the body and comes out of the block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(service)
        yield
        nursery.cancel_scope.cancel()
