"""One exchange with the server: what was sent up to a Sync, what has been answered, and how it is stopped."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import psycopg
import trio
from psycopg import pq

from nurseries.cleanup import cleanup_scope
from nurseries.postgres import parking
from nurseries.postgres.connecting import request_cancel

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

logger = logging.getLogger(__name__)

_GRACE_SECONDS: Final = 0.002
"""Most statements end sooner than a request to cancel them would arrive; it costs the server a process."""

_PATIENCE_SECONDS: Final = 0.05
"""How long the first request to cancel is given to work. A request that overtakes its statement is ignored."""

_BAD: Final = pq.ConnStatus.BAD.value
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC.value
_COPY: Final = frozenset({pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH})


class Exchange:
    """Messages that libpq has been handed, and their answers so far.

    Attributes:
        slots: one for each message that will be answered: None for a statement, its SQL for the preparation of
            one, "" for the closing of one.
        answers: the results that have come, in the order of the slots. One more than there are slots means
            that the commit itself was refused.
    """

    __slots__ = ("_pgconn", "answers", "slots")

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self.slots: list[str | None] = []
        self.answers: list[PGresult] = []

    async def complete(self) -> None:
        """Write what is left to write and read all answers. Can be called again after an interruption.

        Raises:
            psycopg.Error: the connection broke, or does something that this class does not speak.
        """
        pgconn = self._pgconn
        while pgconn.flush():
            await parking.either(pgconn.socket)
            # The server may be unable to take more before we have read what it writes.
            pgconn.consume_input()
        at_end = False
        while True:
            while pgconn.is_busy():
                await parking.readable(pgconn.socket)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:  # ends the results of one statement, or of a script
                if not pgconn.pipeline_status:
                    return
                if at_end or pgconn.status == _BAD:
                    raise psycopg.OperationalError("the connection ended before its answer did")
                at_end = True
                continue
            at_end = False
            status = result.status
            if status == _SYNC:
                return
            if status in _COPY:
                raise psycopg.NotSupportedError("COPY is not for this connection")
            self.answers.append(result)

    async def complete_within(self, seconds: float) -> None:
        """Do so, for at most so many seconds: a server that hangs says nothing, and does not hang up either.

        Raises:
            psycopg.Error: as for `complete`.
            TimeoutError: time is up; the session is out of step.
        """
        with trio.move_on_after(seconds) as patience:
            await self.complete()
        if patience.cancelled_caught:
            raise TimeoutError(f"the database did not answer in {seconds:g} seconds")

    async def stop(self) -> bool:
        """Stop what the server is doing and read its answers off the wire. True: the session is in step again.

        False: the connection is of no use. Shielded, and bounded by the time that a cleanup may take.
        """
        patience = _GRACE_SECONDS
        with cleanup_scope():
            try:
                while True:
                    with trio.move_on_after(patience):
                        await self.complete()
                        return True
                    await request_cancel(self._pgconn)
                    patience = max(2 * patience, _PATIENCE_SECONDS)
            except (psycopg.Error, OSError) as error:
                logger.warning("a statement could not be stopped: %s", error)
        return False
