"""Counts failed logins an account and address together, so that guessing is slow.

Keyed by both: a stranger who guesses does not lock the owner out, whose address is another one. What is
remembered is bounded: an entry is a digest and at most `failures` times, the least recently used entry goes
first, and the janitor has those forgotten that do not count any more.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from app.errors import LoginFailed, LoginLimited
from nurseries.serving.rates import rate_key

if TYPE_CHECKING:
    from collections.abc import Iterator


class LoginGuard:
    """Remembers the failures of the last `window` seconds; times are Trio's, so a clock jump changes nothing."""

    def __init__(self, *, failures: int, window: float, keys: int) -> None:
        self._failures = failures
        self._window = window
        self._keys = keys
        self._tries: OrderedDict[bytes, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many accounts and addresses are remembered."""
        return len(self._tries)

    @contextmanager
    def attempt(self, account: str, address: str) -> Iterator[None]:
        """Hold the body of the block to be one login.

        It counts as failed from the start, so fifty at once get no more tries than one after the other.
        Ending well forgets the failures before it; `LoginFailed` leaves it counted; any other exception
        means that the password was not judged, and takes it back.

        Raises:
            LoginLimited: `retry_after` says when the oldest failure is forgotten.
        """
        key, time = self._admit(account, address)
        try:
            yield
        except LoginFailed:
            raise
        except BaseException:
            self._take_back(key, time)
            raise
        self._tries.pop(key, None)

    def forget_expired(self) -> None:
        """Forget those whose last failure is older than the window: they are as good as never seen."""
        before = trio.current_time() - self._window
        while self._tries:
            key, tries = next(iter(self._tries.items()))
            if tries and tries[-1] > before:
                return  # in the order of their last try, so all that follow are younger
            del self._tries[key]

    def _admit(self, account: str, address: str) -> tuple[bytes, float]:
        now = trio.current_time()
        key = _key(account, address)
        tries = self._tries.setdefault(key, deque(maxlen=self._failures))
        self._tries.move_to_end(key)
        while tries and tries[0] <= now - self._window:
            tries.popleft()
        if len(tries) >= self._failures:
            raise LoginLimited("too many failed logins", retry_after=tries[0] + self._window - now)
        tries.append(now)
        if len(self._tries) > self._keys:
            self._tries.popitem(last=False)
        return key, now

    def _take_back(self, key: bytes, time: float) -> None:
        tries = self._tries.get(key)
        if tries is None or time not in tries:
            return  # forgotten meanwhile: by a success, or by being the least recent
        tries.remove(time)
        if not tries:
            del self._tries[key]


def _key(account: str, address: str) -> bytes:
    """Return a digest: of one size, whatever a client sent."""
    return hashlib.sha256(f"{account}\0{rate_key(address)}".encode(errors="replace")).digest()
