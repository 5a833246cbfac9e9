"""LISTEN, on a connection of its own: a session that listens is never lent to anybody."""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import psycopg
import trio
from psycopg.pq import ExecStatus

from nurseries import observing
from nurseries.postgres.connecting import connect
from nurseries.postgres.exchange import Exchange
from nurseries.postgres.failures import ConnectionLost, error_of, translate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg.pq.abc import PGconn


@attrs.frozen
class Notification:
    """What somebody sent with NOTIFY: a channel, a text of at most 8,000 bytes, and the sender's process."""

    channel: str
    payload: str
    pid: int


class Notifications:
    """An async iterator of notifications, in the order of their senders' commits. It ends only by an error.

    PostgreSQL forgets what it sent to a connection that breaks: after `ConnectionLost`, look for yourself.
    """

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._waiting: deque[Notification] = deque()

    def __aiter__(self) -> Notifications:
        return self

    async def __anext__(self) -> Notification:
        """Wait for the next one. Cancelling the wait loses nothing.

        Raises:
            ConnectionLost: the connection broke.
        """
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._take()
            if not self._waiting:
                await trio.lowlevel.wait_readable(self._pgconn.socket)
        return self._waiting.popleft()

    def _take(self) -> None:
        """Take what has arrived, without waiting."""
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
        except psycopg.Error as error:
            raise ConnectionLost(str(error).strip()) from error
        while found := pgconn.notifies():
            self._waiting.append(Notification(found.relname.decode(), found.extra.decode(), found.be_pid))


@asynccontextmanager
async def listen(conninfo: str, *channels: str) -> AsyncIterator[Notifications]:
    """Listen on channels for the body of the block. What is sent after it is entered is received.

    Raises:
        DatabaseUnavailable: no connection could be made, or it broke.
    """
    pgconn = await connect(conninfo)
    observing.taken(observing.SESSIONS, pgconn, pgconn.user.decode())
    try:
        await _run(pgconn, ";".join(f"LISTEN {_quoted(channel)}" for channel in channels))
        yield Notifications(pgconn)
    finally:
        pgconn.finish()
        observing.returned(observing.SESSIONS, pgconn)


async def _run(pgconn: PGconn, sql: str) -> None:
    exchange = Exchange(pgconn)
    try:
        pgconn.send_query(sql.encode())
        await exchange.complete()
    except psycopg.Error as error:
        raise ConnectionLost(str(error).strip()) from error
    for answer in exchange.answers:
        if answer.status == ExecStatus.FATAL_ERROR:
            refusal = error_of(answer)
            raise translate(refusal) from refusal


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
