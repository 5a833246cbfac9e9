"""Worker threads for tools that block: few in total, fewer for one user, held until they really end.

Python cannot stop a thread. When a call is cancelled or times out, its thread is abandoned and keeps its
token until the function returns; so a tool that hangs uses up its user's tokens, and not everybody's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import attrs
import trio

from nurseries.cleanup import CLEANUP_SECONDS, cleanup_scope
from nurseries.groups import alone

if TYPE_CHECKING:
    from collections.abc import Callable


INTERRUPT_SECONDS: Final = 0.05
"""Between two interrupts of one call."""


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

    async def run(
        self,
        user_id: str,
        function: Callable[..., Any],
        *args: Any,
        interrupt: Callable[[], None] | None = None,
    ) -> Any:
        """Call `function` in a thread. Waiting for a free one is within the caller's deadline.

        Args:
            user_id: whose thread it is.
            function: what blocks.
            *args: for `function`.
            interrupt: makes `function` return soon; called where the call is cancelled, which then waits a moment
                for the thread. Without it, or if it has not worked by then, the thread is abandoned.
        """
        threads = self._users.get(user_id)
        if threads is None:
            threads = self._users[user_id] = _UserThreads(trio.CapacityLimiter(self._per_user), self)
        if interrupt is None:
            return await _in_thread(threads, function, *args)
        call = _Interruptible(function, args, interrupt)
        with alone():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call.watch)
                with call.scope:
                    try:
                        return await _in_thread(threads, call.run)
                    except Exception:
                        if not call.interrupted:
                            raise  # what it raises after an interrupt says no more than that
                    finally:
                        call.over = True
                        nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint()  # cancelled: the thread has ended, or is abandoned
        raise AssertionError("an interrupted call was not cancelled")

    @property
    def in_use(self) -> int:
        """How many threads run, abandoned ones included."""
        return int(self.total.borrowed_tokens)

    @property
    def users(self) -> int:
        """How many users have a thread or wait for one."""
        return len(self._users)


async def _in_thread(threads: _UserThreads, function: Callable[..., Any], *args: Any) -> Any:
    return await trio.to_thread.run_sync(
        function,
        *args,
        limiter=threads,  # type: ignore[arg-type]  # Trio asks for no more than its two methods
        abandon_on_cancel=True,
    )


@attrs.define(eq=False)
class _Interruptible:
    """A call whose thread is told when it is cancelled, and then waited for, a bounded time."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    interrupt: Callable[[], None]
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    over: bool = False
    interrupted: bool = False

    def run(self) -> Any:
        """Work, in the thread. From here on a cancellation waits; before, there is nothing to wait for."""
        trio.from_thread.run_sync(setattr, self.scope, "shield", True)
        return self.function(*self.args)

    async def watch(self) -> None:
        """Wait to be cancelled, on the loop."""
        try:
            await trio.sleep_forever()
        finally:
            if not self.over:
                self.interrupted = True
                self.scope.deadline = trio.current_time() + CLEANUP_SECONDS
                with cleanup_scope():
                    while not self.over:
                        self.interrupt()  # again and again: one that comes between two steps is not heard
                        await trio.sleep(INTERRUPT_SECONDS)


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
