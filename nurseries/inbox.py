"""What a client said and nobody has handled yet, so that whoever reads the socket always reads on."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

INBOX_FRAMES: Final = 64


class Inbox:
    """The frames of one socket, for a worker that takes them one after the other.

    The worker exists only while there are frames: an idle socket has none.
    """

    __slots__ = ("_changed", "_frames")

    def __init__(self) -> None:
        self._frames: deque[str | bytes] | None = None  # None: there is no worker
        self._changed: trio.Event | None = None

    @property
    def idle(self) -> bool:
        """Whether every frame is handled."""
        return self._frames is None

    @property
    def full(self) -> bool:
        """Whether `INBOX_FRAMES` wait."""
        return self._frames is not None and len(self._frames) >= INBOX_FRAMES

    def put(self, frame: str | bytes) -> bool:
        """Add a frame; tell whether a worker must be started for it."""
        if self._frames is not None:
            self._frames.append(frame)
            return False
        self._frames = deque((frame,))
        return True

    async def work(self, handle: Callable[[str | bytes], Awaitable[None]]) -> None:
        """Handle what is there and what comes meanwhile. An error of `handle` ends it, and drops the rest."""
        try:
            while self._frames:
                frame = self._frames.popleft()
                self._tell()
                await handle(frame)
        finally:
            self._frames = None
            self._tell()

    async def change(self) -> None:
        """Return when a frame was taken, or the worker has ended."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
