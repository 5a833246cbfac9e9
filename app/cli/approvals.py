"""Tool calls that wait for the person at the terminal: shown one after the other, answered with a word."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.cli.frames import Frame
    from app.cli.terminal import Lines, Terminal

YES: Final = frozenset({"y", "yes"})
NO: Final = frozenset({"n", "no"})


class Questions:
    """The open questions of one run, in the order in which they came."""

    def __init__(self, terminal: Terminal, decide: Callable[[str, str, str], None]) -> None:
        self._terminal = terminal
        self._decide = decide
        self._open: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
        self._changed = trio.Event()

    def hear(self, frame: Frame) -> None:
        """Take note of a question, or of its end by whomever."""
        key = (frame.run_id, str(frame.payload.get("call_id")))
        if frame.type == "approval_requested":
            self._open[key] = frame.payload
        elif frame.type != "approval_resolved" or self._open.pop(key, None) is None:
            return
        self._tell()

    def drop(self) -> None:
        """Forget them all: the run has ended."""
        if self._open:
            self._open.clear()
            self._tell()

    async def ask(self, lines: Lines) -> None:
        """Ask until cancelled; return at the end of input, with what is open left to others."""
        while True:
            while not self._open:
                await self._changed.wait()
            key = next(iter(self._open))
            answer = await self._answer(lines, key)
            if answer is None:
                return
            if answer:
                self._decide(answer, *key)
                self._open.pop(key, None)

    async def _answer(self, lines: Lines, key: tuple[str, str]) -> str | None:
        """Return `approve`, `deny`, nothing for a question that is closed, or None at the end of input."""
        answer: str | None = ""
        payload = self._open[key]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_closed, key, nursery.cancel_scope)
            while not answer:
                self._terminal.question(str(payload.get("tool")), payload.get("arguments"))
                line = await lines.next()
                if line is None:
                    answer = None
                    break
                self._terminal.entered()
                word = line.strip().lower()
                answer = "approve" if word in YES else "deny" if word in NO else ""
            nursery.cancel_scope.cancel()
        return answer

    async def _until_closed(self, key: tuple[str, str], scope: trio.CancelScope) -> None:
        while key in self._open:
            await self._changed.wait()
        scope.cancel()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
