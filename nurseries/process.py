"""A child process that does not outlive us, however we end.

Linux only: it rests on `PR_SET_PDEATHSIG` (prctl(2)) and on process file descriptors (pidfd_open(2)).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import trio

from nurseries.cleanup import cleanup_scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nurseries.postgres.account import Account

_PR_SET_PDEATHSIG: Final = 1
_LOOK_SECONDS: Final = 0.1  # between two looks, where there is nothing to wait on


class ChildProcess:
    """A running program, in a session of its own, so that Ctrl-C in our terminal does not reach it.

    Start it from the thread that runs Trio: the kernel sends the death signal when the *thread* that made
    the child ends, and a worker thread, which `trio.lowlevel.open_process` uses, ends when it is idle.

    Attributes:
        stdin, stdout: the pipes, where they were asked for; whoever asked closes them.
    """

    stdin: trio.lowlevel.FdStream
    stdout: trio.lowlevel.FdStream

    def __init__(  # noqa: PLR0913  # what a process is started with, each named at the call
        self,
        command: Sequence[str | Path],
        *,
        environment: dict[str, str],
        log: BinaryIO | int,
        death_signal: signal.Signals,
        account: Account | None = None,
        pipes: bool = False,
        directory: str | Path = "/",
    ) -> None:
        """Start `command`.

        Args:
            command: the program's path and its arguments.
            environment: all of the child's environment.
            log: where what it says goes.
            death_signal: what the kernel sends it if we die.
            account: who to run it as; None for ourselves.
            pipes: whether we talk with it, through `stdin` and `stdout`; then the log gets its errors alone.
            directory: where it runs.

        Raises:
            OSError: it cannot be started.
        """
        self._killed: set[int] = set()
        prctl = ctypes.CDLL(None).prctl
        us = os.getpid()

        def tie_to_us() -> None:
            # Runs in the child, after it has changed its user: changing it afterwards would undo this.
            prctl(_PR_SET_PDEATHSIG, int(death_signal))
            if os.getppid() != us:
                os._exit(1)  # we died before the kernel was told

        self._popen = subprocess.Popen(  # noqa: S603  # our callers name programs of the wheel
            command,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else log,
            stderr=log,
            env=environment,
            cwd=directory,
            umask=0o077,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
            start_new_session=True,
            preexec_fn=tie_to_us,  # noqa: PLW1509  # two system calls; no lock is taken between fork and exec
        )
        if pipes:
            assert self._popen.stdin is not None
            assert self._popen.stdout is not None
            # Descriptors of our own, so that Popen's objects do not close them a second time.
            self.stdin = trio.lowlevel.FdStream(os.dup(self._popen.stdin.fileno()))
            self.stdout = trio.lowlevel.FdStream(os.dup(self._popen.stdout.fileno()))
            self._popen.stdin.close()
            self._popen.stdout.close()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """None while it runs; then its exit status, negative for a signal, as in `subprocess`."""
        return self._popen.poll()

    async def wait(self) -> int:
        """Wait until it has ended, and return its exit status. Any number of tasks may wait."""
        await trio.lowlevel.checkpoint()
        while (status := self.status) is None:
            try:
                await wait_ended(self.pid)
            except OSError:  # we have as many descriptors as we may have
                await trio.sleep(_LOOK_SECONDS)
        return status

    def kill_session(self) -> None:
        """Kill it and all that it started, as far as they stayed in its session. Harmless when they are gone."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(OSError):  # without a descriptor left, the others cannot be looked for
            while pids := _session(self.pid) - self._killed:  # again, for what one of them started meanwhile
                self._killed |= pids
                for pid in pids:
                    with suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, signal.SIGKILL)

    async def stop(self, *steps: tuple[signal.Signals, float]) -> int | None:
        """End it: send each signal in turn and give it that many seconds to work.

        Not cut short by a cancellation. Returns the exit status, or None if it outlived all of them.
        """
        for number, seconds in steps:
            if self.status is not None:
                break
            self._popen.send_signal(number)
            with cleanup_scope(seconds):
                await self.wait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self.status


def _session(leader: int) -> set[int]:
    """Return the processes of a session, which may outlive its leader (proc_pid_stat(5))."""
    found = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                # The name of the program stands in brackets, and may hold anything.
                fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[3]) == leader:
                    found.add(int(entry.name))
    return found


async def wait_ended(pid: int) -> None:
    """Wait until the process `pid`, which need not be a child of ours, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        await trio.lowlevel.checkpoint()
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
