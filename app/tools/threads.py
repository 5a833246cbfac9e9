"""Worker threads for tools that block: few in total, fewer for one user, held until they really end.

Python cannot stop a thread. When a call is cancelled or times out, its thread is abandoned and keeps its
token until the function returns; so a tool that hangs uses up its user's tokens, and not everybody's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable


class ToolThreads:
    """The threads of all tools of a server.

    Attributes:
        total: bounds them over all users.

    Args:
        total: threads at once, over all users.
        per_user: threads at once, for one user.
    """

    def __init__(self, total: int = 16, per_user: int = 2) -> None:
        self.total = trio.CapacityLimiter(total)
        self._per_user = per_user
        # A user's limiter lives as long as a call or a thread holds it: users do not add up.
        self._users: WeakValueDictionary[str, _UserThreads] = WeakValueDictionary()

    async def run(self, user_id: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call `function` in a thread of `user_id`'s. Waiting for a free one is within the caller's deadline."""
        threads = self._users.get(user_id)
        if threads is None:
            threads = self._users[user_id] = _UserThreads(trio.CapacityLimiter(self._per_user), self)
        return await trio.to_thread.run_sync(
            function,
            *args,
            limiter=threads,  # type: ignore[arg-type]  # Trio asks for no more than its two methods
            abandon_on_cancel=True,
        )

    @property
    def in_use(self) -> int:
        """How many threads run, abandoned ones included."""
        return int(self.total.borrowed_tokens)

    @property
    def users(self) -> int:
        """How many users have a thread or wait for one."""
        return len(self._users)


@attrs.frozen(eq=False)
class _UserThreads:
    """Both limits as one limiter; the user's own first, so that a greedy user waits in their own queue."""

    own: trio.CapacityLimiter
    all: ToolThreads

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self.own.acquire_on_behalf_of(borrower)
        try:
            await self.all.total.acquire_on_behalf_of(borrower)
        except BaseException:
            self.own.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        self.all.total.release_on_behalf_of(borrower)
        self.own.release_on_behalf_of(borrower)
