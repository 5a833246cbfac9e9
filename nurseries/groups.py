"""Exceptions that come out of a nursery alone need not come out as a group."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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
