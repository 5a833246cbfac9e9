"""Exceptions come out of nurseries in groups: what is in them, and those that hold only one."""

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
