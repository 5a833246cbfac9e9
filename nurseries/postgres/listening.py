"""LISTEN, on a connection of its own: PostgreSQL forgets whoever is not listening, so nothing else may borrow it.

    async with listen(conninfo, "channel") as notifications:
        ...                                          # look up what was missed before
        payload = await notifications.receive()

Notifications arrive in the order of the commits that sent them. What is sent while nobody listens is lost:
after a loss of the connection, listen again first and then look up what happened meanwhile.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
import trio
from psycopg import pq

from nurseries.postgres.connecting import connect
from nurseries.postgres.failures import ConnectionLost, error_of, translate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg.pq.abc import PGconn


class Notifications:
    """What arrives on the channel; see `listen`."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn

    async def receive(self) -> str:
        """Return the payload of the next notification.

        Raises:
            ConnectionLost: there will be none, and some may have been missed.
        """
        await trio.lowlevel.checkpoint()
        try:
            while (notification := self._pgconn.notifies()) is None:
                await trio.lowlevel.wait_readable(self._pgconn.socket)
                self._pgconn.consume_input()
        except (psycopg.Error, OSError) as error:
            raise ConnectionLost(str(error).strip()) from error
        return notification.extra.decode(errors="replace")


@asynccontextmanager
async def listen(conninfo: str, channel: str) -> AsyncIterator[Notifications]:
    """Listen to `channel` for the body of the block.

    Raises:
        DatabaseUnavailable: no connection.
        ConnectionLost: it broke before the server had confirmed.
    """
    pgconn = await connect(conninfo)
    try:
        pgconn.notice_handler = None  # notices have no reader; without this libpq prints them
        await _execute(pgconn, f"LISTEN {_quoted(channel)}")
        yield Notifications(pgconn)
    finally:
        pgconn.finish()


async def _execute(pgconn: PGconn, sql: str) -> None:
    try:
        pgconn.send_query(sql.encode())
        while pgconn.flush():
            await trio.lowlevel.wait_writable(pgconn.socket)
        while pgconn.is_busy():
            await trio.lowlevel.wait_readable(pgconn.socket)
            pgconn.consume_input()
        result = pgconn.get_result()
    except (psycopg.Error, OSError) as error:
        raise ConnectionLost(str(error).strip()) from error
    if result is None or result.status != pq.ExecStatus.COMMAND_OK:
        raise ConnectionLost("no answer") if result is None else translate(error_of(result))
    while pgconn.get_result() is not None:
        pass


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
