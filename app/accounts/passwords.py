"""Passwords: which ones are accepted, and argon2id in one thread of its own.

One hash at a time keeps the memory of all hashes together at one hash's memory, and leaves the other
cores to the chat. Those who wait are counted, and beyond `waiters` are told to come back.
"""

from __future__ import annotations

import base64
import os
import unicodedata
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from app.errors import Busy, WeakPassword

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.accounts.settings import HashCost

_T = TypeVar("_T")

SHORTEST: Final = 8
LONGEST: Final = 128

NO_PASSWORD: Final = ""
"""Stands in place of a hash where no password fits: this account signs in by a code."""

_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32

# The heads of the published lists of leaked passwords, as far as they have eight characters.
_COMMON: Final = frozenset(
    """
    12345678 123456789 1234567890 11111111 00000000 87654321 password password1 password12 password123
    passw0rd p@ssw0rd qwertyui qwertyuiop qwerty123 qwerty12 1q2w3e4r 1qaz2wsx 1q2w3e4r5t iloveyou
    sunshine princess football baseball superman trustno1 letmein1 welcome1 welcome123 admin123
    administrator changeme changeme123 starwars whatever abcd1234 abc12345 asdfghjk asdfasdf zaq12wsx
    """.split()
)


def normalized(password: str) -> str:
    """Return `password` in the one form that is hashed, however a keyboard composed it (RFC 8265, 4.2)."""
    return unicodedata.normalize("NFC", password)


def check_strength(password: str, email: str) -> None:
    """Raise `WeakPassword` unless `password` has 8 to 128 characters and cannot be guessed at once."""
    password = normalized(password)
    if len(password) < SHORTEST:
        raise WeakPassword("password", f"needs at least {SHORTEST} characters")
    if len(password) > LONGEST:
        raise WeakPassword("password", f"may have at most {LONGEST} characters")
    folded = password.casefold()
    if folded in _COMMON or len(set(folded)) == 1:
        raise WeakPassword("password", "is one of the first that anybody would try")
    if folded in {email.casefold(), email.casefold().partition("@")[0]}:
        raise WeakPassword("password", "is the email address")


class Passwords:
    """Hashes and verifies, one at a time."""

    def __init__(self, cost: HashCost, *, waiters: int) -> None:
        self._hasher = PasswordHasher(
            time_cost=cost.passes,
            memory_cost=cost.memory_kib,
            parallelism=cost.lanes,
            hash_len=_HASH_BYTES,
            salt_len=_SALT_BYTES,
            type=Type.ID,
        )
        # Nothing hashes to this, and to find that out costs exactly what a real hash costs.
        self._dummy = (
            f"$argon2id$v=19$m={cost.memory_kib},t={cost.passes},p={cost.lanes}"
            f"${_unpadded(os.urandom(_SALT_BYTES))}${_unpadded(os.urandom(_HASH_BYTES))}"
        )
        self._limiter = trio.CapacityLimiter(1)
        self._waiters = waiters

    async def hash(self, password: str) -> str:
        """Return the hash of `password` in PHC's string format.

        Raises:
            Busy: too many wait already.
        """
        return await self._in_thread(lambda: self._hasher.hash(normalized(password)))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Say whether `password` has the hash `stored`.

        Takes the same time where nothing is stored (None, `NO_PASSWORD`), so that a caller cannot tell
        an unknown user from a wrong password.

        Raises:
            Busy: too many wait already.
        """
        return await self._in_thread(lambda: self._verify_sync(stored or self._dummy, normalized(password)))

    def _verify_sync(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        if self._limiter.statistics().tasks_waiting >= self._waiters:
            raise Busy("too many passwords are being checked", retry_after=2.0)
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _unpadded(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode()
