"""A DuckDB in a process of its own, for the length of one call."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from app.tools.analysis.child import Order, Reply
from app.tools.analysis.duck import BadFile, BadQuery
from nurseries.errors import Unavailable
from nurseries.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.tools.analysis.settings import FileSettings

START_SECONDS: Final = 10.0
"""What starting may take on a busy machine, besides what is done then."""

KILL_SECONDS: Final = 2.0
"""How long the kernel may take to end a process that was killed."""

MAX_REPLY: Final = 16 * 1024 * 1024
"""Bytes of one reply; the other side keeps far below."""

PASSED_ON: Final = ("PATH", "HOME", "LANG", "TZ", "PYTHONPATH", "TMPDIR")


class DuckProcess:
    """One DuckDB; see `open_duck`."""

    def __init__(self, process: ChildProcess, memory: int) -> None:
        self._process = process
        self._memory = memory

    async def ask(self, order: Order) -> Reply:
        """Have something done, and return what came of it. A cancellation leaves the process to be killed.

        Raises:
            BadQuery, BadFile: it cannot be done; the message says why.
        """
        reply = Reply(at_fault="file" if order.do == "describe" else "query", refused=self._ended)
        try:
            await self._process.stdin.send_all(msgspec.json.encode(order) + b"\n")
            line = await self._line()
        except trio.BrokenResourceError:
            line = b""
        if line:
            reply = msgspec.json.decode(line, type=Reply)
        if reply.at_fault == "file":
            raise BadFile("file", reply.refused)
        if reply.at_fault == "query":
            raise BadQuery(reply.refused)
        return reply

    @property
    def _ended(self) -> str:
        return f"DuckDB broke over it: it may need more than {self._memory} bytes of memory"

    async def _line(self) -> bytes:
        """Return one line without its end; empty where the process has ended, or says more than it may."""
        buffer = bytearray()
        while len(buffer) <= MAX_REPLY:
            more = await self._process.stdout.receive_some()
            buffer += more
            if more.endswith(b"\n"):  # there is one reply to each order, and JSON has no line ends
                return bytes(buffer[:-1])
            if not more:
                break
        return b""


@asynccontextmanager
async def open_duck(settings: FileSettings) -> AsyncIterator[DuckProcess]:
    """Start a process for the body of the block; it is killed in the end, whatever it does.

    Raises:
        Unavailable: it cannot be started.
    """
    seconds = math.ceil(settings.query_seconds + START_SECONDS)
    command = [sys.executable, "-P", "-m", "app.tools.analysis.child"]
    try:
        process = ChildProcess(
            [*command, str(settings.memory), str(settings.rows), str(seconds)],
            environment={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            log=subprocess.DEVNULL,  # it may quote what users wrote
            death_signal=signal.SIGKILL,
            pipes=True,
        )
    except OSError as error:
        raise Unavailable("files cannot be read just now", retry_after=1.0) from error
    try:
        async with process.stdin, process.stdout:
            yield DuckProcess(process, settings.memory)
    finally:
        process.kill_session()
        await process.stop((signal.SIGKILL, KILL_SECONDS))
