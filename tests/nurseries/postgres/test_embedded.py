"""The embedded PostgreSQL through its life: made, used, stopped, killed, crashed, and in the wrong place."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nurseries.cleanup import cleanup_scope
from nurseries.errors import Fault, StartupFailed
from nurseries.postgres import cluster as cluster_module
from nurseries.postgres import embedded
from nurseries.postgres.embedded import open_embedded
from nurseries.process import ChildProcess, wait_ended

# For tests that kill PostgreSQL for good: its shared memory then lies in its directory, and goes with that.
NO_SHARED_FILES = {"dynamic_shared_memory_type": "mmap"}

SERVER = Path(__file__).parents[2] / "fixtures" / "embedded_server.py"


def query(conninfo, sql):
    with psycopg.connect(conninfo, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchone() if cursor.description else None


def processes_in(directory):
    """Return the processes that work in `directory` or below."""
    everyone = psutil.process_iter(["cwd"])
    return [process for process in everyone if (process.info["cwd"] or "").startswith(str(directory))]


@asynccontextmanager
async def server_process(directory, *account):
    """Run an embedded PostgreSQL in a process of its own; yields that, PostgreSQL's id and its conninfo."""
    with subprocess.Popen(
        [sys.executable, SERVER, directory, *account], stdout=subprocess.PIPE, text=True
    ) as server:
        first, _, conninfo = server.stdout.readline().partition(" ")
        try:
            yield server, int(first), conninfo.strip()
        finally:
            server.kill()
            with cleanup_scope():
                await wait_ended(int(first))
            with suppress(ProcessLookupError):
                os.kill(int(first), signal.SIGKILL)  # a failing test has found it alive


async def test_a_new_database_is_durable_unicode_and_of_the_newest_version(data_dir):
    """What is made from nothing keeps acknowledged writes, holds any text and is the best we have."""
    async with open_embedded(data_dir) as postgres:
        settings = "fsync", "synchronous_commit", "full_page_writes", "server_encoding", "listen_addresses"
        shown = {name: query(postgres.conninfo(), f"SHOW {name}")[0] for name in settings}
        assert list(shown.values()) == ["on", "on", "on", "UTF8", ""]
        assert postgres.major_version == 18
        assert query(postgres.conninfo(), "SELECT lower('ÄÉΩ'), 'a' < 'b', 'B' < 'a'") == ("äéω", True, True)


async def test_what_was_written_is_there_after_a_restart(data_dir):
    """An orderly stop and a second start keep the data."""
    async with open_embedded(data_dir) as postgres:
        query(postgres.conninfo(), "CREATE TABLE kept AS SELECT 1 AS one")
    assert processes_in(data_dir) == []
    async with open_embedded(data_dir) as postgres:
        assert query(postgres.conninfo(), "SELECT one FROM kept") == (1,)


async def test_cancelling_stops_the_database(data_dir):
    """A cancelled owner leaves no process and no claim behind."""
    with trio.CancelScope() as scope:
        async with open_embedded(data_dir) as postgres:
            pid = postgres.pid
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert not psutil.pid_exists(pid)
    async with open_embedded(data_dir):
        pass


async def test_cancelling_while_it_is_made_leaves_nothing_half_done(data_dir):
    """A cluster gets its name when it is complete, so a start that was cut short is simply repeated."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_embedded(data_dir).__aenter__)
            while not list(data_dir.glob("cluster.part-*")):
                await trio.lowlevel.checkpoint()
            scope.cancel()
    assert processes_in(data_dir) == []
    assert not (data_dir / "cluster").exists()
    async with open_embedded(data_dir) as postgres:
        assert query(postgres.conninfo(), "SELECT 1") == (1,)
    assert list(data_dir.glob("cluster.part-*")) == []


async def test_killing_the_server_ends_the_database(data_dir):
    """After kill -9 the kernel tells PostgreSQL to shut down, and the next server finds everything in order."""
    async with server_process(data_dir) as (server, pid, conninfo):
        query(conninfo, "CREATE TABLE kept AS SELECT 1 AS one")
        server.kill()
        with trio.fail_after(60):
            await wait_ended(pid)
        async with open_embedded(data_dir) as postgres:
            assert query(postgres.conninfo(), "SELECT one FROM kept") == (1,)
    assert processes_in(data_dir) == []


async def test_a_new_server_waits_for_the_database_of_a_killed_one(data_dir):
    """A start right after kill -9 does not fail over the PostgreSQL that is still shutting down."""
    async with server_process(data_dir) as (server, pid, _):
        os.kill(pid, signal.SIGSTOP)  # it cannot go before we let it
        server.kill()
        server.wait()
        async with trio.open_nursery() as nursery:

            async def start():
                async with open_embedded(data_dir) as postgres:
                    assert postgres.pid != pid

            nursery.start_soon(start)
            await wait_all_tasks_blocked(0.2)
            os.kill(pid, signal.SIGCONT)


async def test_a_lock_file_with_a_reused_process_id_does_not_stop_the_start(data_dir):
    """After a container was killed, the process id in postmaster.pid may be that of somebody else."""
    async with server_process(data_dir) as (server, pid, _):
        os.kill(pid, signal.SIGKILL)
        server.kill()
        await wait_ended(pid)
    lock = data_dir / "cluster" / "postmaster.pid"
    with subprocess.Popen(["sleep", "60"], user=lock.owner()) as somebody:
        lock.write_text(lock.read_text().replace(str(pid), str(somebody.pid), 1))
        try:
            async with open_embedded(data_dir) as postgres:
                assert query(postgres.conninfo(), "SELECT 1") == (1,)
        finally:
            somebody.kill()


async def test_two_servers_on_one_directory(data_dir):
    """The second is refused, and told which process is the first."""
    async with server_process(data_dir) as (server, _, conninfo):
        with pytest.raises(StartupFailed, match=f"in use by another server, process {server.pid}"):
            async with open_embedded(data_dir):
                pass
        assert query(conninfo, "SELECT 1") == (1,)


async def test_a_foreign_postgres_on_the_files(data_dir, monkeypatch):
    """A PostgreSQL that somebody started by hand is left alone, and named."""
    monkeypatch.setattr(cluster_module, "_PREDECESSOR_SECONDS", 0.1)
    async with open_embedded(data_dir) as postgres:
        (data_dir / "lock").unlink()  # as if there were no server of ours beside it
        with pytest.raises(StartupFailed, match=f"another PostgreSQL, process {postgres.pid},"):
            async with open_embedded(data_dir):
                pass
        assert psutil.Process(postgres.pid).status() != psutil.STATUS_ZOMBIE


async def test_a_crash_is_mended(data_dir):
    """Supervised, a PostgreSQL that was killed comes back with its data."""
    async with open_embedded(data_dir) as postgres, trio.open_nursery() as nursery:
        nursery.start_soon(postgres.supervise)
        query(postgres.conninfo(), "CREATE TABLE kept AS SELECT 1 AS one")
        first = postgres.pid
        os.kill(first, signal.SIGKILL)
        assert await postgres.wait() == -signal.SIGKILL
        await wait_all_tasks_blocked()
        await postgres.wait_ready()
        assert postgres.pid != first
        assert postgres.restarts == 1
        assert query(postgres.conninfo(), "SELECT one FROM kept") == (1,)
        nursery.cancel_scope.cancel()


async def test_crashes_without_end_are_reported(data_dir):
    """Where starting again does not help, supervision says so instead of trying for ever."""
    async with open_embedded(data_dir, settings=NO_SHARED_FILES) as postgres:
        (data_dir / "cluster" / "global" / "pg_control").unlink()
        os.kill(postgres.pid, signal.SIGKILL)
        with pytest.raises(Fault, match="keeps ending"):
            await postgres.supervise(restarts=1)
        assert postgres.restarts == 0


async def test_a_database_that_does_not_stop_is_forced(data_dir, monkeypatch):
    """Stopping is bounded, even if PostgreSQL answers no signal."""
    monkeypatch.setattr(embedded, "_STOP_STEPS", ((signal.SIGINT, 0.1), (signal.SIGKILL, 2.0)))
    async with open_embedded(data_dir, settings=NO_SHARED_FILES) as postgres:
        os.kill(postgres.pid, signal.SIGSTOP)
    assert await postgres.wait() == -signal.SIGKILL


async def test_a_failed_start_shows_the_log(data_dir):
    """The message has PostgreSQL's own words, so that nobody has to look for a file."""
    with pytest.raises(StartupFailed, match='invalid value for parameter "shared_buffers"'):
        async with open_embedded(data_dir, settings={"shared_buffers": "nonsense"}):
            pass


async def test_ctrl_c_and_our_secrets_stay_with_us(data_dir, monkeypatch):
    """PostgreSQL has a session of its own, and an environment without our variables."""
    monkeypatch.setenv("NURSERIES_SECRET", "swordfish")
    async with open_embedded(data_dir) as postgres:
        assert os.getsid(postgres.pid) == postgres.pid
        assert b"swordfish" not in Path(f"/proc/{postgres.pid}/environ").read_bytes()


async def test_the_log_stays_short(data_dir, monkeypatch):
    """A log that has grown is set aside once, and PostgreSQL goes on writing at its start."""
    monkeypatch.setattr(cluster_module, "LOG_BYTES", 1000)
    async with open_embedded(data_dir) as postgres:
        log = data_dir / "postgres.log"
        for _ in range(3):
            while log.stat().st_size <= 1000:
                with pytest.raises(psycopg.errors.UndefinedTable):
                    query(postgres.conninfo(), "SELECT FROM absent")
            postgres._cluster.bound_log()
            assert log.stat().st_size == 0
        assert sorted(path.name for path in data_dir.glob("postgres.log*")) == [
            "postgres.log",
            "postgres.log.1",
        ]
        assert (data_dir / "postgres.log").stat().st_mode & 0o777 == 0o600


async def test_a_log_that_is_taken_away_ends_nothing(data_dir, monkeypatch, caplog):
    """Supervision says so at each look, and goes on."""
    monkeypatch.setattr(embedded, "_LOG_CHECK_SECONDS", 0.001)
    async with open_embedded(data_dir) as postgres, trio.open_nursery() as nursery:
        (data_dir / "postgres.log").unlink()
        nursery.start_soon(postgres.supervise)
        with trio.fail_after(30):
            while caplog.text.count("cannot be set aside") < 3:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_a_long_path(data_dir):
    """Where a socket's path would be longer than the kernel takes, the socket lies elsewhere, for its time."""
    long = data_dir.with_name("x" * 120)
    for _ in range(2):
        async with server_process(long) as (server, pid, conninfo):
            place = Path(psycopg.conninfo.conninfo_to_dict(conninfo)["host"])
            assert query(conninfo, "SELECT 1") == (1,)
            assert len(str(place)) < 60
            assert place.stat().st_mode & 0o777 == 0o700
            server.kill()
            with trio.fail_after(60):
                await wait_ended(pid)
    async with open_embedded(long):
        assert not place.exists()  # of the server that was killed
    assert not (long / "socket").is_symlink()


async def test_a_version_that_we_do_not_have(data_dir):
    """Files of another PostgreSQL are left as they are, and the message says which ones we bring."""
    async with open_embedded(data_dir):
        pass
    (data_dir / "cluster" / "PG_VERSION").write_text("14\n")
    with pytest.raises(StartupFailed, match="PostgreSQL 14, and this release brings 18 and 16"):
        async with open_embedded(data_dir):
            pass


async def test_an_older_cluster_keeps_its_version(data_dir, monkeypatch):
    """A cluster is run by the PostgreSQL that made it, also when a newer one is at hand."""
    find = cluster_module.find_installations

    async def find_oldest():
        return (await find())[-1:]

    with monkeypatch.context() as patch:
        patch.setattr(cluster_module, "find_installations", find_oldest)
        async with open_embedded(data_dir):
            pass
    async with open_embedded(data_dir) as postgres:
        assert postgres.major_version == 16
        assert query(postgres.conninfo(), "SELECT lower('ÄÉΩ')") == ("äéω",)


async def test_the_child_dies_with_its_parent_before_it_has_begun(tmp_path):
    """A process that is started with a death signal is told it by the kernel: the signal is really set."""
    with (tmp_path / "log").open("ab", buffering=0) as log:
        script = (
            "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
        )
        child = ChildProcess(
            [sys.executable, "-c", script], account=None, environment={}, log=log, death_signal=signal.SIGUSR1
        )
        assert await child.wait() == 0
    assert (tmp_path / "log").read_text() == f"{signal.SIGUSR1.value}\n"


async def test_a_child_is_waited_for_without_a_descriptor():
    """Who has as many as there may be looks now and then instead."""
    child = ChildProcess(
        [sys.executable, "-c", "input()"],
        environment={},
        log=subprocess.DEVNULL,
        death_signal=signal.SIGKILL,
        pipes=True,
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    statuses = []

    async def wait() -> None:
        statuses.append(await child.wait())

    async with child.stdin, child.stdout:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # fewer than are open
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await wait_ended(child.pid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await wait_all_tasks_blocked()
                child.kill_session()
                nursery.cancel_scope.deadline = trio.current_time() + 30
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert statuses == [-signal.SIGKILL]


async def test_what_a_child_started_is_killed_with_it():
    """Also what has a process group of its own, as the jobs of a shell do."""
    script = "import os, time\nif os.fork() == 0:\n    os.setpgid(0, 0)\n    os.write(1, b'%d' % os.getpid())\ntime.sleep(600)"
    child = ChildProcess(
        [sys.executable, "-c", script],
        environment={},
        log=subprocess.DEVNULL,
        death_signal=signal.SIGKILL,
        pipes=True,
    )
    async with child.stdin, child.stdout:
        grandchild = int(await child.stdout.receive_some())
        child.kill_session()
        with trio.fail_after(30):
            await wait_ended(grandchild)
    assert await child.wait() == -signal.SIGKILL
