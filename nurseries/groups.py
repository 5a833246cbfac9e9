"""Exceptions come out of nurseries in groups: what is in them, those that hold only one, and what must not enter one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of a group, however deep they lie; of anything else, itself."""
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for each in error.exceptions:
        yield from leaves(each)


@contextmanager
def alone() -> Iterator[None]:
    """Let a group of exactly one exception pass as that exception; a group of several passes as it is.

    A request's nursery is a detail of how the request is made: whoever opens one should be able to write
    `except NotFound`. Two faults at once stay a group, since neither may hide the other.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        context = error.__context__
        try:
            raise error
        finally:
            error.__context__ = context  # the group around it tells nothing
            del error, context


@contextmanager
def printable() -> Iterator[None]:
    """Let what the block raises pass, unless its `repr` raises, too: then a RuntimeError that says so, caused by it.

    Trio writes the `repr` of what a task raises into the reason of the cancellation that follows, in the middle of
    its bookkeeping. An error that cannot be printed, such as one whose attributes were never set, would leave that
    half done and end every task of the process.
    """
    try:
        yield
    except BaseException as error:
        try:
            repr(error)
        except BaseException:  # noqa: BLE001  # somebody else's code, of whatever kind
            raise RuntimeError(f"a {type(error).__name__} was raised that cannot be printed") from error
        raise
