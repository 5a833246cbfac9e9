"""Rate limits that remember one number: the generic cell rate algorithm (ITU-T I.371, annex A).

A limit of `rate` events a second with a burst of `burst` keeps only the time at which everything taken so
far would be paid for. It is as exact as a token bucket and needs no task to refill it.
"""

from __future__ import annotations

import ipaddress


class Rate:
    """The rate of one peer."""

    __slots__ = ("_interval", "_paid_at", "_tolerance")

    def __init__(self, rate: float, burst: float) -> None:
        self._interval = 1.0 / rate
        self._tolerance = burst / rate
        self._paid_at = 0.0

    def take(self, now: float) -> float:
        """Take one event at the time `now`, and return for how many seconds it must be held back."""
        self._paid_at = max(self._paid_at, now) + self._interval
        return max(0.0, self._paid_at - now - self._tolerance)


class AddressRates:
    """The rates of many addresses, in bounded memory.

    An address whose events are all paid for is the same as an address never seen, so forgetting the least
    recently seen one first gives nothing away until `addresses` of them are busy at once.
    """

    def __init__(self, rate: float, burst: float, addresses: int) -> None:
        self._interval = 1.0 / rate
        self._tolerance = burst / rate
        self._addresses = addresses
        self._paid_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._paid_at)

    def take(self, key: str, now: float) -> float:
        """Take one event unless `key` is over its rate.

        Returns:
            0.0 when it was taken, else after how many seconds another try would be.
        """
        paid_at = max(self._paid_at.pop(key, now), now) + self._interval
        wait = paid_at - now - self._tolerance
        if wait > 0.0:
            self._paid_at[key] = paid_at - self._interval
            return wait
        while len(self._paid_at) >= self._addresses:
            del self._paid_at[next(iter(self._paid_at))]
        self._paid_at[key] = paid_at
        return 0.0


def rate_key(address: str) -> str:
    """Return what an address is counted under: itself, or for IPv6 its /64, the least a customer holds."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
