"""The directory of an embedded PostgreSQL: what lies where, who holds it, and how it comes to be.

    <data directory>/     ours; passable for the account that PostgreSQL runs as
        lock              held by the server that uses the directory; names its process
        cluster/          PostgreSQL's files, given to its account
        socket            PostgreSQL's socket directory, or a link to it where the path would be too long
        binaries/         a copy of PostgreSQL's programs, where its account cannot reach the installed ones
        postgres.log(.1)  what PostgreSQL says

As root we never write inside what the unprivileged account could have replaced by a link of its own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import attrs
import trio

from nurseries.errors import StartupFailed
from nurseries.postgres.account import Account, hand_over
from nurseries.postgres.binaries import Installation, environment, find_installations, make_reachable
from nurseries.process import ChildProcess, wait_ended

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

SOCKET_NAME: Final = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path of unix(7), less its closing NUL
_PREDECESSOR_SECONDS: Final = 15.0  # how long the database of a killed server may take to shut down
_INITDB_SECONDS: Final = 120.0
LOG_BYTES: Final = 8 * 1024 * 1024
"""Size at which the log is set aside; at most about twice as much is kept."""


@attrs.frozen
class Cluster:
    """A data directory that is ours, with a database in it that can be started."""

    directory: Path
    socket_directory: Path
    installation: Installation
    account: Account | None

    @property
    def files(self) -> Path:
        """PostgreSQL's own data directory."""
        return self.directory / "cluster"

    @property
    def log_path(self) -> Path:
        """What PostgreSQL and initdb say."""
        return self.directory / "postgres.log"

    def open_log(self) -> BinaryIO:
        """Open the log for appending. It may quote what users wrote, so it is readable for us alone."""
        self.log_path.touch(mode=0o600)
        return self.log_path.open("ab", buffering=0)

    def log_tail(self, offset: int) -> str:
        """Return the last lines of what was logged after the first `offset` bytes."""
        with self.log_path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(offset, end - 4096))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-20:])

    def bound_log(self) -> None:
        """Set the log aside if it has grown too large. PostgreSQL appends, and so goes on at the start."""
        if self.log_path.stat().st_size > LOG_BYTES:
            shutil.copyfile(self.log_path, self.log_path.with_suffix(".log.1"))
            os.truncate(self.log_path, 0)

    def is_ready(self, pid: int) -> bool:
        """Say whether the PostgreSQL with this process id takes connections."""
        lines = self._pid_lines()
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    async def wait_vacant(self) -> None:
        """Wait until no PostgreSQL uses the files, and remove what a killed one left behind.

        Raises:
            StartupFailed: one that another program started is still there.
        """
        lines = self._pid_lines()
        if lines and _is_postgres(pid := int(lines[0])):
            with trio.move_on_after(_PREDECESSOR_SECONDS):
                await wait_ended(pid)
            if _is_postgres(pid):
                raise StartupFailed(f"another PostgreSQL, process {pid}, is using {self.files}")
        # The number may belong to some other process by now, which PostgreSQL would take for its predecessor.
        (self.files / "postmaster.pid").unlink(missing_ok=True)

    def _pid_lines(self) -> list[str]:
        try:
            return (self.files / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return []


@contextmanager
def claim(directory: Path) -> Iterator[Path]:
    """Hold `directory`, which is made if need be, for this process alone. The kernel lets go if we die.

    Yields its absolute path, free of links.

    Raises:
        StartupFailed: another server holds it; the message names its process.
    """
    directory = directory.resolve()
    if not directory.exists():
        directory.mkdir(parents=True)
        directory.chmod(0o711)  # whoever PostgreSQL runs as must pass it; nobody else learns more than that
    with (directory / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StartupFailed(
                f"{directory} is in use by another server, process {lock.read().strip() or 'unknown'}"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield directory


@contextmanager
def socket_directory(directory: Path, account: Account | None) -> Iterator[Path]:
    """Make the private directory of the socket, and remove it in the end.

    It lies in `directory`, unless a socket's address would be longer than the kernel takes: then it is a
    new one in the directory for temporary files, and a link in `directory` leads to it.
    """
    link = directory / "socket"
    _remove_socket_directory(link)
    if len(os.fsencode(link / SOCKET_NAME)) <= _SOCKET_PATH_BYTES:
        place = link
        place.mkdir(mode=0o700)
    else:
        place = Path(tempfile.mkdtemp(prefix="nurseries-", dir=_short_directory(account)))
        link.symlink_to(place)
    try:
        if account is not None:
            os.chown(place, account.uid, account.gid)
        yield place
    finally:
        _remove_socket_directory(link)


async def prepare(directory: Path, socket: Path, account: Account | None) -> Cluster:
    """Return the cluster of `directory`, made anew if there is none, and free to be started.

    Raises:
        StartupFailed: it cannot be had; the message says why.
    """
    files = directory / "cluster"
    installations = await find_installations()
    installation = installations[0]
    if files.exists():
        major = _major_version(files)
        suitable = [one for one in installations if one.major == major]
        if not suitable:
            have = " and ".join(str(one.major) for one in installations)
            raise StartupFailed(
                f"{files} was made by PostgreSQL {major}, and this release brings {have}:"
                " dump it with the release that made it, and load it into a new data directory"
            )
        installation = suitable[0]
    if account is not None:
        installation = await make_reachable(installation, account, directory / "binaries")
    cluster = Cluster(directory, socket, installation, account)
    if not files.exists():
        await _initialise(cluster)
    elif account is not None and files.stat().st_uid != account.uid:
        logger.info("giving %s to account %s", files, account.name)
        hand_over(files, account)
    await cluster.wait_vacant()
    return cluster


async def _initialise(cluster: Cluster) -> None:
    """Make a new cluster. It gets its name when it is complete and on disk, so no half-made one is ever used."""
    for abandoned in cluster.directory.glob("cluster.part-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix="cluster.part-", dir=cluster.directory))
    if cluster.account is not None:
        os.chown(part, cluster.account.uid, cluster.account.gid)
    command: list[str | Path] = [
        cluster.installation.program("initdb"),
        f"--pgdata={part}",
        "--username=postgres",
        "--auth-local=trust",  # the socket's directory is private to the account
        "--auth-host=reject",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--no-instructions",
    ]
    if cluster.installation.major >= 17:
        # Sorts and folds by code point on every system alike, so that no upgrade of a C library breaks an index.
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    with cluster.open_log() as log:
        offset = log.tell()
        process = ChildProcess(
            command,
            account=cluster.account,
            environment=environment(),
            log=log,
            death_signal=signal.SIGKILL,
        )
        try:
            with trio.move_on_after(_INITDB_SECONDS):
                await process.wait()
        finally:
            status = await process.stop((signal.SIGTERM, 2), (signal.SIGKILL, 2))
    if status != 0:
        raise StartupFailed(f"initdb failed with status {status}:\n{cluster.log_tail(offset)}")
    os.rename(part, cluster.files)  # noqa: PTH104  # one system call


def _major_version(files: Path) -> int:
    try:
        return int((files / "PG_VERSION").read_text())
    except (OSError, ValueError):
        raise StartupFailed(f"{files} is not the data directory of a PostgreSQL") from None


def _is_postgres(pid: int) -> bool:
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False


def _short_directory(account: Account | None) -> str:
    """Return a directory for temporary files whose path is short, and which the account can pass."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if account is None and runtime and len(runtime) < 40 and os.access(runtime, os.W_OK):
        return runtime
    return "/tmp"  # noqa: S108  # mkdtemp makes an unguessable, private directory in it


def _remove_socket_directory(link: Path) -> None:
    """Remove the socket's directory, also one that a killed server left behind. A link's target is removed too."""
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)  # refuses if the target is itself a link
        link.unlink()
    else:
        shutil.rmtree(link, ignore_errors=True)
