"""A request's nursery as what runs in the request sees it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from nurseries.groups import alone, printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class RequestNursery:
    """Starts child tasks of one request, which ends when they have.

    A `trio.Nursery` leads to its parent task and from there, through public attributes alone, to the tasks of
    everybody. This one leads nowhere. Whoever wants to cancel some tasks opens a nursery of their own.
    """

    __slots__ = ("_nursery",)

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, function: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> None:
        """Run `function(*args)` as a child task; what it raises fails the request."""
        self._nursery.start_soon(_printably, function, *args, name=function if name is None else name)

    async def start(self, function: Callable[..., Awaitable[Any]], *args: Any, name: object = None) -> Any:
        """Run a child task and return what it passes to `task_status.started()`, once it has."""
        started = partial(_printably, function)
        return await self._nursery.start(started, *args, name=function if name is None else name)


async def _printably(function: Callable[..., Awaitable[Any]], *args: Any, **status: Any) -> None:
    with printable():
        await function(*args, **status)


def start_apart(
    nursery: trio.Nursery, function: Callable[..., Awaitable[Any]], *args: Any, name: object = None
) -> None:
    """Start a task that outlives who asks for it, without their context variables.

    A task inherits them, and through them it would reach what its starter was doing, for as long as it runs: the
    HTTP call that it answered, with its headers and its connection.
    """
    Context().run(partial(nursery.start_soon, function, *args, name=name))


@asynccontextmanager
async def open_request_nursery() -> AsyncIterator[RequestNursery]:
    """Have a nursery for the body of the block. A single fault passes as itself, several as their group.

    Raises:
        RuntimeError: the body raised a `Cancelled` that was kept from somewhere else. No scope here was cancelled,
            so it is a fault; a nursery alone would take it for its own and pass over it in silence.
    """
    whole = False
    with alone():
        async with trio.open_nursery() as nursery:
            with printable():
                yield RequestNursery(nursery)
            whole = True
    if not whole:
        raise RuntimeError("a cancellation was raised that belongs to no scope here")
