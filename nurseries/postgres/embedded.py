"""A PostgreSQL of our own: made, started, watched and stopped by this process, on a private unix socket.

Nothing of it is left when we end: an orderly end stops it, and if we are killed the kernel tells it to shut
down. If it crashes, `EmbeddedPostgres.supervise` starts it again.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio
from psycopg.conninfo import make_conninfo

from nurseries.errors import Fault, StartupFailed
from nurseries.postgres.account import choose_account, let_pass, require_passable
from nurseries.postgres.binaries import environment
from nurseries.postgres.cluster import SOCKET_NAME, Cluster, claim, prepare, socket_directory
from nurseries.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "512MB",
    "jit": "off",  # compiling costs more than our short queries do
    "autovacuum_naptime": "15s",  # until the first ANALYZE a new database plans badly
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    "lc_messages": "C",
}
"""What differs from PostgreSQL's defaults. `fsync` and `synchronous_commit` stay on: an acknowledged write stays."""

_START_SECONDS: Final = 60.0  # a start after a crash replays up to max_wal_size of the log
_STOP_STEPS: Final = (
    (signal.SIGINT, 15.0),
    (signal.SIGQUIT, 3.0),
    (signal.SIGKILL, 2.0),
)  # fast, immediate, forced
_LOG_CHECK_SECONDS: Final = 60.0


class EmbeddedPostgres:
    """A running PostgreSQL; see `open_embedded`.

    Attributes:
        restarts: how often it was started again after a crash.
    """

    def __init__(self, cluster: Cluster, settings: Mapping[str, str]) -> None:
        self._cluster = cluster
        self._settings = {**SETTINGS, **settings, "unix_socket_directories": str(cluster.socket_directory)}
        self._process: ChildProcess | None = None
        self._ready = trio.Event()
        self.restarts = 0

    def conninfo(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """Return the connection string for a database and a role of this cluster."""
        return make_conninfo(host=str(self._cluster.socket_directory), port=5432, dbname=dbname, user=user)

    @property
    def pid(self) -> int:
        """Process id of the PostgreSQL that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def major_version(self) -> int:
        """PostgreSQL's major version."""
        return self._cluster.installation.major

    async def wait(self) -> int:
        """Wait until PostgreSQL has ended, and return its exit status (negative for a signal)."""
        assert self._process is not None
        return await self._process.wait()

    async def wait_ready(self) -> None:
        """Wait until PostgreSQL takes connections; it does unless `supervise` is starting it again."""
        await self._ready.wait()

    async def supervise(self, *, restarts: int = 5, window: float = 60.0) -> None:
        """Start PostgreSQL again whenever it ends by itself, and keep its log short. Runs until cancelled.

        Raises:
            Fault: it ended more than `restarts` times in `window` seconds, so to start it again does not help.
        """
        crashes: deque[float] = deque(maxlen=restarts + 1)
        while True:
            status = await self._wait_and_bound_log()
            self._ready = trio.Event()
            crashes.append(trio.current_time())
            if len(crashes) > restarts and crashes[-1] - crashes[0] < window:
                raise Fault(
                    f"PostgreSQL keeps ending, now with status {status}; see {self._cluster.log_path}"
                )
            logger.error("PostgreSQL ended with status %s; starting it again", status)
            # Its orphans hold the shared memory for a moment, so give each further try more time than the last.
            await trio.sleep(0.05 * 2 ** len(crashes))
            try:
                await self.start()
            except StartupFailed as error:
                logger.warning("%s", error)  # its end is the next thing that the loop sees
            else:
                self.restarts += 1

    async def _wait_and_bound_log(self) -> int:
        while True:
            with trio.move_on_after(_LOG_CHECK_SECONDS):
                return await self.wait()
            try:
                self._cluster.bound_log()
            except OSError as error:  # it was taken away, or the disk is full: no reason to end a server
                logger.warning("the log of PostgreSQL cannot be set aside: %s", error)

    async def start(self) -> None:
        """Start it and wait until it takes connections (`open_embedded` and `supervise` do).

        Raises:
            StartupFailed: it ended, or was not ready within a minute; the message has the end of its log.
        """
        process, offset = self._spawn()
        pause = 0.002
        with trio.move_on_after(_START_SECONDS):
            while process.status is None:
                if self._cluster.is_ready(process.pid):
                    self._ready.set()
                    return
                await trio.sleep(pause)  # PostgreSQL tells nobody when it is ready, but writes it to a file
                pause = min(pause * 1.2, 0.05)
        how = "was not ready in time" if process.status is None else f"ended with status {process.status}"
        await self.stop()
        tail = self._cluster.log_tail(offset)
        raise StartupFailed(f"PostgreSQL {how}; the end of {self._cluster.log_path}:\n{tail}")

    def _spawn(self) -> tuple[ChildProcess, int]:
        """Start the process, and return it with the place in the log where it begins."""
        cluster = self._cluster
        options = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        try:
            with cluster.open_log() as log:
                offset = log.tell()
                self._process = ChildProcess(
                    [cluster.installation.program("postgres"), "-D", cluster.files, *options],
                    account=cluster.account,
                    environment=environment(),
                    log=log,
                    death_signal=signal.SIGINT,
                )
        except OSError as error:
            raise StartupFailed(f"cannot start PostgreSQL: {error}") from error
        return self._process, offset

    async def stop(self) -> None:
        """End it within 20 s, gently if it can be (`open_embedded` does)."""
        if self._process is not None and await self._process.stop(*_STOP_STEPS) is None:
            logger.error("PostgreSQL, process %s, does not end", self._process.pid)


def running_conninfo(directory: Path, dbname: str = "postgres", user: str = "postgres") -> str | None:
    """Return how to reach the PostgreSQL that another process runs on `directory`, None where none answers there.

    Raises:
        StartupFailed: it may not be reached from this account.
    """
    place = (directory / "socket").resolve()
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(place / SOCKET_NAME))
        except (FileNotFoundError, ConnectionRefusedError):  # the latter where a PostgreSQL was killed
            return None
        except OSError as error:
            raise StartupFailed(f"cannot reach the PostgreSQL of {directory}: {error.strerror}") from error
    return make_conninfo(host=str(place), port=5432, dbname=dbname, user=user)


@asynccontextmanager
async def open_embedded(
    directory: Path,
    *,
    within: Path | None = None,
    account: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> AsyncIterator[EmbeddedPostgres]:
    """Run PostgreSQL on the files in `directory`, which are made if they do not exist, and stop it in the end.

    Enter it in the thread that is to outlive it (see `ChildProcess`), and run `supervise` beside what uses it.

    Args:
        directory: for PostgreSQL alone; one server at a time.
        within: a directory of the server's around it. When we are root, the account is let through both.
        account: when we are root, who PostgreSQL runs as. By default who owns the files, else `postgres`,
            else `nobody`.
        settings: PostgreSQL settings that replace or complete `SETTINGS`.

    Raises:
        StartupFailed: it cannot run; the message says why, and what to do.
    """
    async with AsyncExitStack() as stack:
        try:
            directory = stack.enter_context(claim(directory))
            chosen = choose_account(account, directory / "cluster")
            if chosen is not None:
                for ours in (within, directory):
                    if ours is not None:
                        let_pass(ours, chosen)
                require_passable(directory, chosen)
            place = stack.enter_context(socket_directory(directory, chosen))
            postgres = EmbeddedPostgres(await prepare(directory, place, chosen), settings or {})
            stack.push_async_callback(postgres.stop)
            await postgres.start()
        except OSError as error:
            raise StartupFailed(f"cannot run PostgreSQL in {directory}: {error}") from error
        yield postgres
