"""The one place where a request comes to be, and where everything it owned is gone.

A request is a nursery with a context. Inside it are its scoped database, its emitter and its child tasks;
when the block ends, however it ends, the children have ended, the database and the emitter refuse further
use, and the budget has its lease back.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from decimal import getcontext, setcontext
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

import attrs
import structlog
import trio

from nurseries.errors import CallerError, DatabaseUnavailable, NurseriesError, RequestEnded, Unavailable
from nurseries.events import Emitter
from nurseries.nursery import open_request_nursery
from nurseries.postgres.scoped import ScopedDatabase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nurseries.budgets import Budget
    from nurseries.context import UserContext
    from nurseries.events import Log
    from nurseries.nursery import RequestNursery
    from nurseries.postgres.pool import Pool

T = TypeVar("T")
logger = structlog.get_logger(__name__)


@attrs.frozen(eq=False)
class Request:
    """What one request owns. Nothing else is in reach of what runs in it, through public attributes.

    Attributes:
        context: who it is for.
        database: the user's own rows, one unit of work at a time.
        events: says what happens, to this user alone.
        nursery: the request's children live here and end before it does.
    """

    context: UserContext
    database: ScopedDatabase
    events: Emitter
    nursery: RequestNursery
    _kernel: Kernel = attrs.field(repr=False)


@attrs.define(eq=False)
class Live:
    """What is open now, for inspection.

    Attributes:
        requests: the open requests, by request id.
        contexts: theirs, and those of ended requests that somebody still holds: there should be none.
        opened: how many requests there have been.
    """

    requests: dict[str, Request] = attrs.field(factory=dict)
    contexts: WeakValueDictionary[str, UserContext] = attrs.field(factory=WeakValueDictionary)
    opened: int = 0

    def add(self, request: Request) -> None:
        """Count a request that opens."""
        self.opened += 1
        self.requests[request.context.request_id] = request
        self.contexts[request.context.request_id] = request.context

    def remove(self, context: UserContext) -> None:
        """Forget a request that has ended."""
        self.requests.pop(context.request_id, None)


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
    async with kernel.budget.lease(context.user_id), _open(kernel, context) as request:
        yield request


@asynccontextmanager
async def open_child(parent: Request, operation: str, *, run_id: str | None = None) -> AsyncIterator[Request]:
    """Open a request inside another one, for a part of its work: same user and thread, all else its own.

    `run_id` is the one that the operation had before it was cut off, if it goes on now.

    It takes no place in the budget: the place that it would wait for may be its parent's. Call it from the
    parent's own tasks, so that it ends before the parent does.

    Raises:
        RequestEnded: the parent has ended.
        DepthExceeded, InvalidContext: see `UserContext.child`.
    """
    kernel = parent._kernel  # noqa: SLF001  # the one place besides `open_request` that may make requests of it
    if parent.context.request_id not in kernel.live.requests:
        raise RequestEnded(f"{operation}: the request has ended")
    async with _open(kernel, parent.context.child(operation, run_id=run_id)) as request:
        yield request


@asynccontextmanager
async def _open(kernel: Kernel, context: UserContext) -> AsyncIterator[Request]:
    # The arithmetic settings that a task begins with are its parent's object, and would be everybody's.
    setcontext(getcontext().copy())
    database = ScopedDatabase(kernel.pool, context.user_id)
    events = Emitter(context, kernel.log)
    try:
        async with open_request_nursery() as nursery:
            request = Request(context, database, events, nursery, kernel)
            kernel.live.add(request)
            yield request
    finally:
        events.close()
        database.close()
        kernel.live.remove(context)


@attrs.frozen
class Failure:
    """How a request failed, as far as its user may know. The log knows the rest."""

    code: str
    message: str


async def run_request(
    kernel: Kernel, context: UserContext, engine: Callable[[Request], Awaitable[T]]
) -> T | Failure:
    """Run `engine` in a request of its own, behind the crash barrier.

    Returns:
        What the engine returned, or the failure.
    """

    async def work() -> T:
        async with open_request(kernel, context) as request:
            return await engine(request)

    return await contain(context, work)


async def contain(context: UserContext, work: Callable[[], Awaitable[T]]) -> T | Failure:
    """Run `work` behind a crash barrier: nothing it raises passes, but a cancellation from outside.

    SystemExit and KeyboardInterrupt that an engine raises are its faults like any other; the process learns
    of signals through its signal receiver, never through an exception.

    Returns:
        What `work` returned, or the failure.
    """
    try:
        return await work()
    except BaseException as error:  # noqa: BLE001  # the barrier: see above
        cancelled, rest = _split(error)
        try:
            if rest is not None:
                _log(context, rest)
            if cancelled is not None:
                raise cancelled from None
            assert rest is not None
            return describe(rest)
        finally:
            del cancelled, rest  # their tracebacks hold this frame: the request would wait for the collector


def _log(context: UserContext, error: BaseException) -> None:
    """Log a failure once: what the caller did needs no traceback, and its words are the caller's own."""
    fields = {"run_id": context.run_id, "request_id": context.request_id}
    if isinstance(error, (CallerError, Unavailable)):
        logger.info("request refused", code=error.code, **fields)
    else:
        logger.error("request failed", exc_info=error, **fields)


def _split(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """Part the cancellation, which must go on, from the faults, which must not.

    A `Cancelled` that was kept and raised again later belongs to no open scope, and would climb to the root.
    """
    if trio.current_effective_deadline() > -math.inf:
        return None, error
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
        return Failure(error.code, error.summary)
    if isinstance(error, NurseriesError) and error.code != NurseriesError.code:
        return Failure(error.code, str(error))
    return Failure("internal", "The request failed for a reason of ours; it has been logged.")
