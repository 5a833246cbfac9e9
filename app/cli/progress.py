"""Doing the same for many users, some at a time, and saying how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rich.console import Console

AT_ONCE: Final = 8
"""How many users sign up, or open their socket, at the same time."""


async def for_all(count: int, one: Callable[[int], Awaitable[None]], progress: Progress | None) -> None:
    """Do `one` for every number below `count`, some at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)
            if progress is not None:
                progress.advance()

    async with trio.open_nursery() as nursery:
        for _ in range(min(AT_ONCE, count)):
            nursery.start_soon(worker)


class Progress:
    """Says how far something is, on a terminal; elsewhere it only says that it began."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._console = console
        self._what = what
        self._total = total
        self._done = 0
        if not console.is_terminal:
            console.print(f"{what}: {total}", highlight=False)

    def advance(self) -> None:
        """One more is done."""
        self.show(self._done + 1)

    def show(self, done: int) -> None:
        """So many are done."""
        self._done = done
        if self._console.is_terminal:
            end = "\n" if done >= self._total else "\r"
            self._console.print(f"{self._what}: {done} of {self._total}", end=end, highlight=False)
