"""Whether more can come of a run or a thread: what lets its readers finish though no event says that it is over.

A run whose events cannot be written ends without a word in the log, and a thread that is removed has no log at
all. Whoever ends them tells `Endings`, and each reader takes what is still there and stops.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator


class Outlook:
    """What the readers of one run or thread share.

    Attributes:
        over: nothing more will be published; what was is in the log, as far as it could be written.
    """

    __slots__ = ("__weakref__", "_waiting", "over")

    def __init__(self) -> None:
        self.over = False
        self._waiting: set[trio.CancelScope] = set()

    @contextmanager
    def waiting(self, seconds: float) -> Iterator[None]:
        """Let the block wait for at most so long, and no longer than more can come."""
        with trio.move_on_after(0 if self.over else seconds) as scope:
            self._waiting.add(scope)
            try:
                yield
            finally:
                self._waiting.discard(scope)

    def end(self) -> None:
        """Nothing more will come."""
        self.over = True
        for scope in self._waiting:
            scope.cancel()


class Endings:
    """The outlooks that somebody reads by, by user and id of the run or thread; gone with their last reader."""

    def __init__(self) -> None:
        self._outlooks: WeakValueDictionary[tuple[str, str], Outlook] = WeakValueDictionary()

    def outlook(self, user_id: str, subject_id: str) -> Outlook:
        """Return the outlook of a run or a thread. Take it before looking whether the subject is there."""
        outlook = self._outlooks.get((user_id, subject_id))
        if outlook is None:
            outlook = self._outlooks[user_id, subject_id] = Outlook()
        return outlook

    def tell(self, user_id: str, subject_id: str) -> None:
        """Let whoever reads it finish."""
        outlook = self._outlooks.pop((user_id, subject_id), None)
        if outlook is not None:
            outlook.end()
