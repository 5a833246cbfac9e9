"""What the database's refusals mean to us: SQLSTATE in, an exception of our tree out (PostgreSQL, appendix A)."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from psycopg.errors import error_from_result

from nurseries.errors import (
    Conflict,
    DatabaseUnavailable,
    Fault,
    NurseriesError,
    StatementTimeout,
    StorageFull,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from psycopg import Error
    from psycopg.pq.abc import PGresult


class UniqueViolation(Conflict):
    """Such a row is there already.

    Attributes:
        constraint: name of the unique or exclusion constraint.
    """

    def __init__(self, message: str, constraint: str | None) -> None:
        super().__init__(message)
        self.constraint = constraint


class TransactionConflict(Conflict):
    """The transaction was rolled back because of others (deadlock, serialization, a changed table): run it again."""


class ConnectionLost(DatabaseUnavailable):
    """The connection broke, and the transaction it was in was certainly not committed."""


class DatabaseSilent(ConnectionLost):
    """The database did not answer in time, and the connection was closed: whoever asks again may wait as long."""


class QueryFailed(Fault):
    """The database refused a statement for a reason that none of the other classes names.

    Attributes:
        sqlstate: five characters, or None where the client side found the fault.
        constraint: the constraint that was violated, if one was.
    """

    def __init__(self, message: str, sqlstate: str | None = None, constraint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint


_CLASSES: Final[Mapping[str, type[NurseriesError]]] = MappingProxyType(
    {
        "57014": StatementTimeout,  # our own cancellations never come here: their caller is gone
        **dict.fromkeys(("55P03", "55006"), Conflict),  # lock not available, object in use
        # Serialization failure, deadlock, a prepared statement that is gone.
        **dict.fromkeys(("40001", "40P01", "26000"), TransactionConflict),
        # Ended by an administrator, a crash, a dropped database, or a time limit on idling.
        **dict.fromkeys(("57P01", "57P02", "57P04", "57P05", "25P03", "25P04"), ConnectionLost),
        **dict.fromkeys(("08000", "08003", "08006"), ConnectionLost),
        # Starting up, refusing connections, a standby that takes no writes, a failing disk.
        **dict.fromkeys(("57P03", "08001", "08004", "25006", "58000", "58030"), DatabaseUnavailable),
        # Out of something: memory, connections, space.
        **dict.fromkeys(("53000", "53200", "53300", "53400"), DatabaseUnavailable),
        "53100": StorageFull,
    }
)
_UNIQUE: Final = ("23505", "23P01")


def error_of(result: PGresult) -> Error:
    """Return psycopg's exception for a failed result: the cause of the one that `translate` makes."""
    return error_from_result(result)


def translate(error: Error) -> NurseriesError:
    """Return our exception for one of psycopg. Raise it `from` that one."""
    message = error.diag.message_primary or str(error)
    sqlstate = error.sqlstate
    if sqlstate in _UNIQUE:
        return UniqueViolation(message, error.diag.constraint_name)
    if is_stale_plan(error):
        return TransactionConflict(message)
    known = _CLASSES.get(sqlstate or "")
    if known is not None:
        return known(message)
    return QueryFailed(message, sqlstate, error.diag.constraint_name)


def is_stale_plan(error: Error) -> bool:
    """Whether a table was altered in a way that a prepared statement of this session cannot follow.

    The SQLSTATE (feature not supported) is shared by a hundred other cases; the raising function is not.
    """
    return error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"
