"""One exception tree: whose fault it is, and what the other side may do about it.

`CallerError`: what was asked cannot be done; asking again changes nothing.
`Unavailable`: we cannot do it now; `retry_after` says when to come back.
`Fault`: something of ours broke; it is logged and stays with the one request it broke.

Each class has a stable `code`, which is what leaves the process; messages are for people.
"""

from __future__ import annotations

from typing import ClassVar


class NurseriesError(Exception):
    """Root of everything that this package raises on purpose."""

    code: ClassVar[str] = "internal"


# -- the caller's fault ------------------------------------------------------------------------------


class CallerError(NurseriesError):
    """The request cannot be carried out as it was made."""

    code = "bad_request"


class InvalidContext(CallerError):
    """A `UserContext` was refused.

    Attributes:
        field: the attribute at fault, with its path (`agent_context.plan[3]`).
    """

    code = "invalid_context"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class Conflict(CallerError):
    """The database refused because something else holds what was asked for (a lock, a unique key)."""

    code = "conflict"


# -- not now -----------------------------------------------------------------------------------------


class Unavailable(NurseriesError):
    """We cannot do this now.

    Attributes:
        retry_after: seconds after which another try makes sense.
    """

    code = "unavailable"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PoolExhausted(Unavailable):
    """No connection came free within the wait limit, or too many are waiting already."""

    code = "pool_exhausted"


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached, or the breaker is open because it could not.

    Attributes:
        summary: what a caller may read of it, for its message is the database's own and names what is ours.
    """

    code = "database_unavailable"
    summary: ClassVar[str] = "The database cannot be reached just now."


class StorageFull(DatabaseUnavailable):
    """The database has no space left: nothing can be written until it has, and everything can be read."""

    code = "storage_full"
    summary: ClassVar[str] = "The database has no space left just now: nothing was stored."


class TooManySessions(Unavailable):
    """The user has as many sockets open as one user may."""

    code = "rate_limited"


class Draining(Unavailable):
    """The server is going down and takes no new work."""

    code = "draining"


# -- our fault ---------------------------------------------------------------------------------------


class Fault(NurseriesError):
    """Something broke here; the request it broke fails alone."""


class OutcomeUnknown(Fault):
    """A COMMIT was sent and never answered: it may or may not have happened. Look it up, never guess."""

    code = "outcome_unknown"


class StatementTimeout(Fault):
    """The database gave up on a statement at its time limit."""

    code = "statement_timeout"


class RequestEnded(Fault):
    """What a request owned was used after its end."""

    code = "request_ended"


class Misdelivery(Fault):
    """An event was about to reach somebody other than its user. It was not sent."""

    code = "misdelivery"


class StartupFailed(Fault):
    """A service could not start; the server says why and does not listen."""

    code = "startup_failed"
