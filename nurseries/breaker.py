"""A circuit breaker: stop asking a service that does not answer, and find out cheaply when it does again.

closed     everything passes; `threshold` failures in a row open it
open       nothing passes for `cooldown` seconds
half-open  one probe passes; its success closes the breaker, its failure opens it again

The pattern is Michael Nygard's, *Release It!*, chapter 5. All methods are synchronous: the decision to
try is made at one instant, so two callers can never both be the probe.
"""

from __future__ import annotations

from typing import Literal

import attrs
import trio

State = Literal["closed", "open", "half-open"]


@attrs.frozen
class BreakerStatistics:
    """State at one instant. `failures` counts the current row of failures, `opened` all openings so far."""

    state: State
    failures: int
    opened: int
    refused: int


class Breaker:
    """Guards one service. Ask `admit()` before a try, then report `succeeded()`, `failed()` or `abandoned()`."""

    def __init__(self, *, threshold: int = 5, cooldown: float = 2.0) -> None:
        self._threshold = threshold
        self._cooldown = cooldown
        self._failures = 0
        self._opened = 0
        self._refused = 0
        self._retry_at: float | None = None  # None while closed
        self._probing = False

    @property
    def state(self) -> State:
        """`half-open` from the end of the cooldown until the probe has reported."""
        if self._retry_at is None:
            return "closed"
        if self._probing or trio.current_time() >= self._retry_at:
            return "half-open"
        return "open"

    def admit(self) -> float | None:
        """Ask to try. None: go ahead, and report what came of it. A number: refused, come back after so many seconds."""
        if self._retry_at is None:
            return None
        remaining = self._retry_at - trio.current_time()
        if remaining > 0 or self._probing:
            self._refused += 1
            return max(remaining, 0.1)
        self._probing = True
        return None

    def succeeded(self) -> None:
        """The service answered: close."""
        self._failures = 0
        self._retry_at = None
        self._probing = False

    def failed(self) -> None:
        """The service did not answer: count, and open at the threshold or after a failed probe."""
        self._failures += 1
        if self._probing or (self._retry_at is None and self._failures >= self._threshold):
            self._opened += 1
            self._retry_at = trio.current_time() + self._cooldown
        self._probing = False

    def abandoned(self) -> None:
        """The try was cancelled before it could tell: give the probe's place to the next caller."""
        self._probing = False

    def statistics(self) -> BreakerStatistics:
        """Return the state at this instant."""
        return BreakerStatistics(self.state, self._failures, self._opened, self._refused)
