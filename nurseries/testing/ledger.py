"""Every lease and connection of a test: who had it, from when to when, and what is still out at its end."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch

import attrs
import trio

from nurseries import observing
from nurseries.testing.places import Line, described, lines_above, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator


@attrs.define(eq=False)
class Entry:
    """One acquisition. Times are real seconds since the ledger was opened.

    Attributes:
        kind: of what: the name of a budget, `connections lent` or `sessions with the database`.
        holder: the user or service that it counts against; of a session, the database role.
        task: the function whose task took it.
        lines: at which it was taken, the innermost last.
        taken: when it was.
        returned: when it was given back; None while it is out.
    """

    kind: str
    holder: str
    task: str
    lines: list[Line] = attrs.field(repr=False)
    taken: float
    returned: float | None = None

    def __str__(self) -> str:
        until = "still out" if self.returned is None else f"until {self.returned:.3f} s"
        return f"{self.kind}: {self.holder}, from {self.taken:.3f} s, {until}, in task {self.task}"


class LeaseLedger:
    """What was taken while it was open; see `lease_ledger`.

    Attributes:
        entries: in the order in which they were taken.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._out: dict[tuple[str, object], Entry] = {}
        self._opened = time.monotonic()

    def taken(self, kind: str, thing: object, holder: str) -> None:
        """Enter an acquisition; the product calls it."""
        try:
            task = name_of(trio.lowlevel.current_task())
        except RuntimeError:
            task = "none"
        lines = lines_above(sys._getframe(2))  # noqa: SLF001  # there is no other way to look up
        entry = Entry(kind, holder, task, lines, self._now())
        self.entries.append(entry)
        self._out[kind, thing] = entry

    def returned(self, kind: str, thing: object) -> None:
        """Enter a return; the product calls it."""
        entry = self._out.pop((kind, thing), None)
        if entry is not None:
            entry.returned = self._now()

    @property
    def out(self) -> tuple[Entry, ...]:
        """What has not been given back."""
        return tuple(self._out.values())

    @property
    def leases(self) -> tuple[Entry, ...]:
        """What has not been given back, without the sessions that a pool holds ready."""
        return tuple(entry for entry in self.out if entry.kind != observing.SESSIONS)

    def check(self, *, pools_open: bool = False) -> None:
        """Fail if anything is out.

        Args:
            pools_open: whether sessions with the database may be, which a pool holds ready until it is closed.

        Raises:
            AssertionError: something is; the message has who took it, and where.
        """
        __tracebackhide__ = True
        out = self.leases if pools_open else self.out
        if out:
            listing = "\n".join(
                f"{entry}\n    " + described(entry.lines).replace("\n", "\n    ") for entry in out
            )
            raise AssertionError(f"still out: {len(out)} of {len(self.entries)}\n{listing}")

    def __str__(self) -> str:
        return "\n".join(map(str, self.entries))

    def _now(self) -> float:
        return time.monotonic() - self._opened


@contextmanager
def lease_ledger() -> Iterator[LeaseLedger]:
    """Enter what is taken in the body of the block.

    It does not check by itself: call `check` where all should be back.
    """
    ledger = LeaseLedger()
    with patch.object(observing, "observer", ledger):
        yield ledger
