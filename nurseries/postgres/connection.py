"""One session with PostgreSQL, driven by Trio: libpq without any event loop in between.

The session stays in libpq's pipeline mode for life. A unit of statements and the Sync that ends it are one
write, and its answers usually one read. Outside a transaction block the statements between two Syncs are
one transaction (PostgreSQL manual, 55.2.3): all of them happen, or none.
"""

from __future__ import annotations

import itertools
import math
import select
from typing import TYPE_CHECKING, Final

import attrs
import psycopg
import trio
from psycopg import pq

from nurseries import observing
from nurseries.cleanup import cleanup_scope
from nurseries.errors import NurseriesError, OutcomeUnknown
from nurseries.postgres.connecting import connect
from nurseries.postgres.exchange import Exchange
from nurseries.postgres.failures import (
    ConnectionLost,
    DatabaseSilent,
    QueryFailed,
    error_of,
    is_stale_plan,
    translate,
)
from nurseries.postgres.statement import RowLoader, Statement, encode, leaves_no_trace, only_reads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.pq.abc import PGconn, PGresult

    from nurseries.postgres.statement import Row

MAX_PREPARED: Final = 256
"""Prepared statements kept in one session; the oldest is closed when there is one more."""

_BAD: Final = pq.ConnStatus.BAD.value
_IDLE: Final = pq.TransactionStatus.IDLE.value
_OK: Final = pq.ExecStatus.COMMAND_OK.value
_FATAL: Final = pq.ExecStatus.FATAL_ERROR.value


@attrs.frozen
class _Prepared:
    name: bytes
    leaves_no_trace: bool


class Connection:
    """One session. One task at a time may use it; a second is refused with `trio.BusyResourceError`.

    Attributes:
        pid: process id of the server's side, as in `pg_stat_activity`.
        opened_at: when it was opened, on Trio's clock.
    """

    @classmethod
    async def open(cls, conninfo: str, *, answer_seconds: float = math.inf) -> Connection:
        """Connect; `run` then waits so long for the answer to each statement. Errors are those of `connecting.connect`."""
        return cls(await connect(conninfo), answer_seconds)

    def __init__(self, pgconn: PGconn, answer_seconds: float) -> None:
        pgconn.enter_pipeline_mode()
        pgconn.notice_handler = None  # notices have no reader; without this libpq prints them
        self.pid = pgconn.backend_pid
        self.opened_at = trio.current_time()
        self._pgconn = pgconn
        self._answer_seconds = answer_seconds
        self._fd = pgconn.socket
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._loader = RowLoader()
        self._prepared: dict[str, _Prepared] = {}
        self._names = itertools.count()
        self._traces = False
        self._exchange: Exchange | None = None  # the one in flight
        observing.taken(observing.SESSIONS, self, pgconn.user.decode())

    # -- state ---------------------------------------------------------------------------------------

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
            and self._exchange is None
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
        self._exchange = None
        self._pgconn.finish()
        observing.returned(observing.SESSIONS, self)

    # -- units of statements -------------------------------------------------------------------------

    async def run(
        self, statements: Sequence[Statement], *, preamble: Sequence[Statement] = (), commits: bool = False
    ) -> list[PGresult]:
        """Run statements in one round trip and return a result for each.

        A cancellation stops what is running on the server and leaves the session idle, or closes it. A server that
        does not answer in time is not asked to stop, for it would not answer that either.

        Args:
            statements: what to run; outside a transaction block, one transaction.
            preamble: what comes before them, takes no time and has no result of interest, such as BEGIN.
            commits: whether the unit is a transaction of its own, so that silence may mean that it was committed.

        Raises:
            OutcomeUnknown: the connection broke, and what the statements wrote may or may not be there.
            ConnectionLost: the connection broke, and nothing of this was committed; `DatabaseSilent` if there
                was no answer in time.
            NurseriesError: as `failures.translate` has it, for a statement that was refused.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # nothing has been sent yet: free to leave
        exchange = self._send((*preamble, *statements))
        try:
            await exchange.complete_within(self._answer_seconds * max(1, len(statements)))
        except (psycopg.Error, OSError) as error:
            unknown = commits and not all(only_reads(statement.sql) for statement in statements)
            raise self._broken(exchange, error, unknown=unknown) from error
        except BaseException:
            await self._settle(exchange)
            raise
        return self._conclude(exchange)[len(preamble) :]

    async def conclude_transaction(self, statement: Statement) -> PGresult:
        """Run COMMIT or ROLLBACK: shielded from cancellation, for at most the time that a cleanup may take.

        Without an answer the connection is closed.

        Raises:
            OutcomeUnknown: there was no answer.
            NurseriesError: the server refused, so the transaction is rolled back.
        """
        exchange = self._send((statement,))
        with cleanup_scope():
            try:
                await exchange.complete()
            except (psycopg.Error, OSError) as error:
                self.close()
                raise OutcomeUnknown(f"{statement.sql} was sent and not answered: {error}") from error
            (result,) = self._conclude(exchange)
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
        exchange = self._begin_exchange()
        self._traces = True
        try:
            self._pgconn.exit_pipeline_mode()
            self._pgconn.send_query(sql.encode())
            await exchange.complete()
            self._pgconn.enter_pipeline_mode()
        except (psycopg.Error, OSError) as error:
            raise self._broken(exchange, error, unknown=True) from error
        except BaseException:
            await exchange.stop()
            self.close()
            raise
        exchange.slots += [None] * len(exchange.answers)
        self._conclude(exchange)

    def rows(self, result: PGresult) -> list[Row]:
        """Return the rows of a result of `run`."""
        return self._loader.rows(result)

    # -- the exchange --------------------------------------------------------------------------------

    def _begin_exchange(self) -> Exchange:
        if self._exchange is not None:
            raise trio.BusyResourceError("another task is using this database connection")
        if self.is_closed:
            raise ConnectionLost("the database connection is closed")
        self._exchange = Exchange(self._pgconn)
        return self._exchange

    def _send(self, statements: Sequence[Statement]) -> Exchange:
        """Hand all statements and the Sync to libpq, which writes what the socket takes."""
        encoded = [encode(statement.params) for statement in statements]  # may raise; nothing is sent yet
        exchange = self._begin_exchange()
        pgconn, slots = self._pgconn, exchange.slots
        try:
            while len(self._prepared) > MAX_PREPARED:
                # First in the pipeline, so that no failure before it can make the server skip it.
                pgconn.send_close_prepared(self._prepared.pop(next(iter(self._prepared))).name)
                slots.append("")
            for statement, (values, formats) in zip(statements, encoded, strict=True):
                prepared = self._prepared.get(statement.sql)
                if prepared is None:
                    prepared = self._prepare(statement.sql)
                    slots.append(statement.sql)
                pgconn.send_query_prepared(prepared.name, values, formats)
                slots.append(None)
                self._traces = self._traces or not prepared.leaves_no_trace
            pgconn.pipeline_sync()
        except psycopg.Error as error:
            # Without its Sync nothing is committed.
            raise self._broken(exchange, error, unknown=False) from error
        return exchange

    def _prepare(self, sql: str) -> _Prepared:
        prepared = _Prepared(b"n%d" % next(self._names), leaves_no_trace(sql))
        self._pgconn.send_prepare(prepared.name, sql.encode())
        self._prepared[sql] = prepared
        return prepared

    def _conclude(self, exchange: Exchange) -> list[PGresult]:
        """End an exchange. Return the statements' results, or raise for the first that failed."""
        self._account(exchange)
        for answer in exchange.answers:
            if answer.status == _FATAL:
                error = error_of(answer)
                if is_stale_plan(error):
                    self.close()  # its other prepared statements may be as old
                raise translate(error) from error
        return [answer for slot, answer in zip(exchange.slots, exchange.answers, strict=True) if slot is None]

    async def _settle(self, exchange: Exchange) -> None:
        """End an exchange that was interrupted, or close."""
        if await exchange.stop():
            self._account(exchange)
        else:
            self.close()

    def _account(self, exchange: Exchange) -> None:
        """Forget preparations that failed, and note tables made by `SELECT ... INTO`."""
        self._exchange = None
        for slot, answer in itertools.zip_longest(exchange.slots, exchange.answers):
            if answer is None or answer.status != _OK:
                if slot:
                    self._prepared.pop(slot, None)
            elif slot is None and (answer.command_status or b"").startswith(b"SELECT"):
                self._traces = True

    def _broken(self, exchange: Exchange, error: Exception, *, unknown: bool) -> NurseriesError:
        """Close, and return what the caller is told: whether what was written is surely not there.

        It is not if the server refused one of the statements before it went: a farewell that stands in the
        place of a statement's answer ended the transaction with it. Else `unknown` says what silence means.
        """
        self.close()
        if isinstance(error, psycopg.NotSupportedError):
            return QueryFailed(str(error))
        for _, answer in zip(exchange.slots, exchange.answers, strict=False):
            if answer.status == _FATAL and answer.error_field(pq.DiagnosticField.SQLSTATE):
                return translate(error_of(answer))
        if unknown:
            return OutcomeUnknown(f"what was written may or may not be there: {error}")
        lost = DatabaseSilent if isinstance(error, TimeoutError) else ConnectionLost
        return lost(str(error).strip())
