"""Where a call waits for the database's socket, all in one place: tests with a clock of their own wait otherwise.

A session that listens waits elsewhere, for it is no call that somebody will answer.
"""

from __future__ import annotations

import trio

readable = trio.lowlevel.wait_readable
writable = trio.lowlevel.wait_writable


async def either(fd: int) -> None:
    """Wait until `fd` can be read or written."""
    async with trio.open_nursery() as nursery:

        async def until_readable() -> None:
            await readable(fd)
            nursery.cancel_scope.cancel()

        nursery.start_soon(until_readable)
        await writable(fd)
        nursery.cancel_scope.cancel()
