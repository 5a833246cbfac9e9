"""One session with PostgreSQL, driven by Trio: libpq without any event loop in between.

The session stays in libpq's pipeline mode for life. A unit of statements and the Sync that ends it are one
write, and its answers usually one read. Outside a transaction block the statements between two Syncs are
one transaction (PostgreSQL manual, 55.2.3): all of them happen, or none.
"""

from __future__ import annotations

import itertools
import logging
import select
from typing import TYPE_CHECKING, Final

import attrs
import psycopg
import trio
from psycopg import pq

from nurseries.cleanup import cleanup_scope
from nurseries.errors import NurseriesError, OutcomeUnknown
from nurseries.postgres.connecting import connect, request_cancel
from nurseries.postgres.failures import ConnectionLost, QueryFailed, error_of, is_stale_plan, translate
from nurseries.postgres.statement import RowLoader, Statement, encode, leaves_no_trace, only_reads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.pq.abc import PGconn, PGresult

    from nurseries.postgres.statement import Row

logger = logging.getLogger(__name__)

MAX_PREPARED: Final = 256
"""Prepared statements kept in one session; the oldest is closed when there is one more."""

_FIRST_CANCEL_SECONDS: Final = 0.05

_BAD: Final = pq.ConnStatus.BAD.value
_IDLE: Final = pq.TransactionStatus.IDLE.value
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC.value
_OK: Final = pq.ExecStatus.COMMAND_OK.value
_FATAL: Final = pq.ExecStatus.FATAL_ERROR.value
_COPY: Final = frozenset({pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH})


@attrs.frozen
class _Prepared:
    name: bytes
    leaves_no_trace: bool


class Connection:
    """One session. One task at a time may use it; a second is refused with `trio.BusyResourceError`.

    Attributes:
        opened_at: when it was opened, on Trio's clock.
    """

    @classmethod
    async def open(cls, conninfo: str) -> Connection:
        """Connect; see `connecting.connect` for hosts, time limits and errors."""
        return cls(await connect(conninfo))

    def __init__(self, pgconn: PGconn) -> None:
        pgconn.enter_pipeline_mode()
        pgconn.notice_handler = None  # notices have no reader; without this libpq prints them
        self.opened_at = trio.current_time()
        self._pgconn = pgconn
        self._fd = pgconn.socket
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._loader = RowLoader()
        self._prepared: dict[str, _Prepared] = {}
        self._names = itertools.count()
        self._traces = False
        # The exchange in flight: one slot for each message that will be answered (None for a statement, its
        # SQL for the preparation of one, "" for the closing of one) and the answers so far.
        self._busy = False
        self._slots: list[str | None] = []
        self._answers: list[PGresult] = []

    # -- state ---------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id of the server's side, as in `pg_stat_activity`."""
        return self._pgconn.backend_pid

    @property
    def is_closed(self) -> bool:
        """Whether it is of no use any more, by our doing or by the server's."""
        return self._pgconn.status == _BAD

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction block is open, be it sound or failed."""
        return self._pgconn.transaction_status != _IDLE

    @property
    def has_failed(self) -> bool:
        """Whether the open transaction block can only be rolled back."""
        return self._pgconn.transaction_status == pq.TransactionStatus.INERROR

    @property
    def is_clean(self) -> bool:
        """Whether a stranger may have it next: connected, idle, in no transaction, with nothing left in the session."""
        pgconn = self._pgconn
        return (
            pgconn.status != _BAD
            and not self._busy
            and not self._traces
            and pgconn.transaction_status == _IDLE
            and pgconn.pipeline_status == pq.PipelineStatus.ON
        )

    @property
    def is_alive(self) -> bool:
        """Whether the peer is still there, as far as can be told without a round trip.

        Nobody has been asked anything, so whatever can be read is a farewell or the end of the stream. (It may
        also be the report of a reloaded setting: then a good connection is replaced, which costs little.)
        """
        return self._pgconn.status != _BAD and not self._poll.poll(0)

    def close(self) -> None:
        """Close it; closing twice is harmless. What the server is running for it is not stopped by this."""
        self._pgconn.finish()

    # -- units of statements -------------------------------------------------------------------------

    async def run(self, statements: Sequence[Statement], *, commits: bool = False) -> list[PGresult]:
        """Run statements in one round trip and return a result for each.

        A cancellation stops what is running on the server and leaves the session idle, or closes it.

        Args:
            statements: what to run; outside a transaction block, one transaction.
            commits: whether the unit is a transaction of its own, so that silence may mean that it was committed.

        Raises:
            OutcomeUnknown: the connection broke, and what the statements wrote may or may not be there.
            ConnectionLost: the connection broke, and nothing of this was committed.
            NurseriesError: as `failures.translate` has it, for a statement that was refused.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # nothing has been sent yet: free to leave
        self._send(statements)
        try:
            await self._exchange()
        except (psycopg.Error, OSError) as error:
            unknown = commits and not all(only_reads(statement.sql) for statement in statements)
            raise self._broken(error, unknown=unknown) from error
        except BaseException:
            await self._settle()
            raise
        return self._conclude()

    async def conclude_transaction(self, statement: Statement) -> PGresult:
        """Run COMMIT or ROLLBACK: shielded from cancellation, for at most the time that a cleanup may take.

        Without an answer the connection is closed.

        Raises:
            OutcomeUnknown: there was no answer.
            NurseriesError: the server refused, so the transaction is rolled back.
        """
        self._send((statement,))
        with cleanup_scope():
            try:
                await self._exchange()
                (result,) = self._conclude()
            except (psycopg.Error, OSError) as error:
                self._busy = False
                self.close()
                raise OutcomeUnknown(f"{statement.sql} was sent and not answered: {error}") from error
            return result
        self.close()
        raise OutcomeUnknown(f"{statement.sql} was sent and not answered in time")

    async def script(self, sql: str) -> None:
        """Run any number of statements without parameters, such as a migration, as one transaction.

        The session is taken to be changed by it, so a pool does not use it again.

        Raises:
            NurseriesError: as for `run`; nothing of the script is kept unless it commits by itself.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._begin_exchange()
        self._traces = True
        try:
            self._pgconn.exit_pipeline_mode()
            self._pgconn.send_query(sql.encode())
            await self._exchange()
            self._pgconn.enter_pipeline_mode()
        except (psycopg.Error, OSError) as error:
            raise self._broken(error, unknown=True) from error
        except BaseException:
            await self._settle()
            self.close()
            raise
        self._slots = [None] * len(self._answers)
        self._conclude()

    def rows(self, result: PGresult) -> list[Row]:
        """Return the rows of a result of `run`."""
        return self._loader.rows(result)

    # -- the exchange --------------------------------------------------------------------------------

    def _begin_exchange(self) -> None:
        if self._busy:
            raise trio.BusyResourceError("another task is using this database connection")
        if self.is_closed:
            raise ConnectionLost("the database connection is closed")
        self._busy = True
        self._slots, self._answers = [], []

    def _send(self, statements: Sequence[Statement]) -> None:
        """Hand all statements and the Sync to libpq, which commits what the socket takes."""
        encoded = [encode(statement.params) for statement in statements]  # may raise; nothing is sent yet
        self._begin_exchange()
        pgconn, slots = self._pgconn, self._slots
        try:
            while len(self._prepared) > MAX_PREPARED:
                # First in the pipeline, so that no failure before it can make the server skip it.
                pgconn.send_close_prepared(self._prepared.pop(next(iter(self._prepared))).name)
                slots.append("")
            for statement, (values, formats) in zip(statements, encoded, strict=True):
                prepared = self._prepared.get(statement.sql) or self._prepare(statement.sql)
                pgconn.send_query_prepared(prepared.name, values, formats)
                slots.append(None)
                self._traces = self._traces or not prepared.leaves_no_trace
            pgconn.pipeline_sync()
        except psycopg.Error as error:
            raise self._broken(error, unknown=False) from error  # without its Sync nothing is committed

    def _prepare(self, sql: str) -> _Prepared:
        prepared = _Prepared(b"n%d" % next(self._names), leaves_no_trace(sql))
        self._pgconn.send_prepare(prepared.name, sql.encode())
        self._slots.append(sql)
        self._prepared[sql] = prepared
        return prepared

    async def _exchange(self) -> None:
        """Write what is left to write and read all answers. Can be entered again after an interruption."""
        pgconn = self._pgconn
        while pgconn.flush():
            await self._wait_writable()
        ended = False
        while True:
            while pgconn.is_busy():
                await trio.lowlevel.wait_readable(self._fd)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:  # the end of one statement's results
                if not pgconn.pipeline_status:
                    return
                if ended or pgconn.status == _BAD:
                    raise psycopg.OperationalError("the connection ended before its answer did")
                ended = True
                continue
            ended = False
            status = result.status
            if status == _SYNC:
                return
            if status in _COPY:
                raise psycopg.NotSupportedError("COPY is not for this connection")
            self._answers.append(result)

    async def _wait_writable(self) -> None:
        """Wait until the socket takes more. The server may be stuck writing to us meanwhile, so read as well."""
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                await trio.lowlevel.wait_readable(self._fd)
                self._pgconn.consume_input()
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            await trio.lowlevel.wait_writable(self._fd)
            nursery.cancel_scope.cancel()

    def _conclude(self) -> list[PGresult]:
        """Return the statements' results, or raise for the first that failed."""
        slots, answers = self._slots, self._answers
        self._account()
        for answer in answers:
            if answer.status == _FATAL:
                error = error_of(answer)
                if is_stale_plan(error):
                    self.close()  # its other prepared statements may be as old
                raise translate(error) from error
        return [answer for slot, answer in zip(slots, answers, strict=True) if slot is None]

    def _account(self) -> None:
        """End the exchange: forget preparations that failed, and note tables made by `SELECT ... INTO`."""
        self._busy = False
        for slot, answer in itertools.zip_longest(self._slots, self._answers):
            if answer is None or answer.status != _OK:
                if slot:
                    self._prepared.pop(slot, None)
            elif slot is None and (answer.command_status or b"").startswith(b"SELECT"):
                self._traces = True

    # -- when it goes wrong --------------------------------------------------------------------------

    async def _settle(self) -> None:
        """After an interruption: stop the server, read its answers off the wire; if that fails, close.

        A request to cancel that overtakes its statement is ignored by the server, so it is repeated.
        """
        patience = _FIRST_CANCEL_SECONDS
        with cleanup_scope():
            try:
                while True:
                    await request_cancel(self._pgconn)
                    with trio.move_on_after(patience):
                        await self._exchange()
                        self._account()
                        return
                    patience *= 2
            except (psycopg.Error, OSError) as error:
                logger.warning("a cancelled statement could not be stopped: %s", error)
        self.close()

    def _broken(self, error: Exception, *, unknown: bool) -> NurseriesError:
        """Close, and return what the caller is told: whether what was written is surely not there.

        It is not if the server refused one of the statements before it went: a farewell that stands in the
        place of a statement's answer ended the transaction with it. Else `unknown` says what silence means.
        """
        self._busy = False
        self.close()
        if isinstance(error, psycopg.NotSupportedError):
            return QueryFailed(str(error))
        for _, answer in zip(self._slots, self._answers, strict=False):
            if answer.status == _FATAL and answer.error_field(pq.DiagnosticField.SQLSTATE):
                return translate(error_of(answer))
        if unknown:
            return OutcomeUnknown(f"the connection broke before the answer came: {error}")
        return ConnectionLost(str(error).strip())
