"""A terminal with `nurseries chat` in it."""

import fcntl
import os
import re
import sys
import termios
from contextlib import asynccontextmanager

import trio

COMMAND = [sys.executable, "-m", "app", "chat"]


class Screen:
    """The other end of a pseudo-terminal in which the client runs."""

    def __init__(self, process, master):
        self.process = process
        self._master = master
        self.text = ""

    def type(self, text):
        os.write(self._master, text.encode())

    async def until(self, pattern):
        """Read until what came since the last call matches, and forget it up to there."""
        with trio.fail_after(60):
            while not (match := re.search(pattern, self.text)):
                await trio.lowlevel.wait_readable(self._master)
                try:
                    self.text += os.read(self._master, 65536).decode()
                except OSError:  # how a terminal ends
                    raise AssertionError(f"{pattern} is not in {self.text!r}") from None
        before, self.text = self.text[: match.end()], self.text[match.end() :]
        return before

    async def status(self):
        with trio.fail_after(60):
            return await self.process.wait()


@asynccontextmanager
async def at_terminal(url, *arguments):
    master, slave = os.openpty()
    try:
        process = await trio.lowlevel.open_process(
            [*COMMAND, "--url", url, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        try:
            yield Screen(process, master)
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    finally:
        os.close(master)
