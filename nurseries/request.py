"""The one place where a request comes to be, and where everything it owned is gone.

A request is a nursery with a context. Inside it are its scoped database, its emitter and its child tasks;
when the block ends, however it ends, the children have ended, the database and the emitter refuse further
use, and the budget has its lease back.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import attrs
import structlog
import trio

from nurseries.errors import CallerError, DatabaseUnavailable, NurseriesError, Unavailable
from nurseries.events import Emitter
from nurseries.groups import alone
from nurseries.postgres.scoped import ScopedDatabase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nurseries.budgets import Budget
    from nurseries.context import UserContext
    from nurseries.events import Log
    from nurseries.postgres.pool import Pool

T = TypeVar("T")
logger = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class Request:
    """What one request owns. Nothing else is in reach of what runs in it.

    Attributes:
        context: who it is for.
        database: the user's own rows, one unit of work at a time.
        events: says what happens, to this user alone.
        nursery: the request's children live here and end before it does.
    """

    context: UserContext
    database: ScopedDatabase
    events: Emitter
    nursery: trio.Nursery


@attrs.define(eq=False)
class Live:
    """The requests that are open now, for inspection: request id to context."""

    requests: dict[str, UserContext] = attrs.field(factory=dict)


@attrs.frozen(eq=False)
class Kernel:
    """The shared infrastructure that requests are made from.

    Attributes:
        pool: connections of the role that requests use.
        log: numbers and keeps events.
        budget: how many requests may be open at once, per user and in all.
        live: the open requests.
    """

    pool: Pool
    log: Log
    budget: Budget
    live: Live = attrs.field(factory=Live)


@asynccontextmanager
async def open_request(kernel: Kernel, context: UserContext) -> AsyncIterator[Request]:
    """Open a request for `context`.

    The order is the order of ownership: a place in the budget, the doors, the nursery innermost, so that
    the children are gone before the doors close and the place is free.

    Raises:
        PoolExhausted: no place came free within the budget's wait limit.
    """
    async with kernel.budget.lease(context.user_id):
        database = ScopedDatabase(kernel.pool, context.user_id)
        events = Emitter(context, kernel.log)
        kernel.live.requests[context.request_id] = context
        try:
            with alone():
                async with trio.open_nursery() as nursery:
                    yield Request(context, database, events, nursery)
        finally:
            events.close()
            database.close()
            del kernel.live.requests[context.request_id]


@attrs.frozen
class Failure:
    """How a request failed, as far as its user may know. The log knows the rest."""

    code: str
    message: str


async def run_request(
    kernel: Kernel, context: UserContext, engine: Callable[[Request], Awaitable[T]]
) -> T | Failure:
    """Run `engine` in a request of its own, behind the crash barrier: nothing it raises passes, but a cancellation.

    SystemExit and KeyboardInterrupt that an engine raises are its faults like any other; the process learns
    of signals through its signal receiver, never through an exception.

    Returns:
        What the engine returned, or the failure.
    """
    try:
        async with open_request(kernel, context) as request:
            return await engine(request)
    except BaseException as error:  # noqa: BLE001  # the barrier: see above
        cancelled, rest = _split(error)
        if rest is not None:
            _log(context, rest)
        if cancelled is not None:
            raise cancelled from None
        assert rest is not None
        return describe(rest)


def _log(context: UserContext, error: BaseException) -> None:
    """Log a failure once: what the caller did needs no traceback, and its words are the caller's own."""
    fields = {"run_id": context.run_id, "request_id": context.request_id}
    if isinstance(error, (CallerError, Unavailable)):
        logger.info("request refused", code=error.code, **fields)
    else:
        logger.error("request failed", exc_info=error, **fields)


def _split(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Part the cancellation, which must go on, from the faults, which must not."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)
    if isinstance(error, trio.Cancelled):
        return error, None
    return None, error


def describe(error: BaseException) -> Failure:
    """Say what a user may know: our own errors speak for themselves, of others only the fact.

    An error without a code of its own, and what a database says that cannot be reached, name what is ours
    alone: tables, hosts, roles.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, DatabaseUnavailable):
        return Failure(error.code, "The database cannot be reached just now.")
    if isinstance(error, NurseriesError) and error.code != NurseriesError.code:
        return Failure(error.code, str(error))
    return Failure("internal", "The request failed for a reason of ours; it has been logged.")
