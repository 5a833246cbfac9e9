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

from nurseries.errors import Unavailable

State = Literal["closed", "open", "half-open"]


@attrs.frozen
class BreakerStatistics:
    """State at one instant. `failures` counts the current row of failures, `opened` all openings so far."""

    state: State
    failures: int
    opened: int
    refused: int


class BreakerOpen(Unavailable):
    """The service has not answered lately, and it is too early to try again."""


class Breaker:
    """Guards one service. `admit()` before a try; then tell the admission what came of it."""

    def __init__(self, *, threshold: int = 5, cooldown: float = 2.0) -> None:
        self._threshold = threshold
        self._cooldown = cooldown
        self._failures = 0
        self._opened = 0
        self._refused = 0
        self._retry_at: float | None = None  # None while closed
        self._probe: Admission | None = None

    @property
    def state(self) -> State:
        """`half-open` from the end of the cooldown until the probe has reported."""
        if self._retry_at is None:
            return "closed"
        return "half-open" if trio.current_time() >= self._retry_at else "open"

    def admit(self) -> Admission:
        """Ask to try.

        Raises:
            BreakerOpen: not now; `retry_after` says when.
        """
        admission = Admission(self)
        if self._retry_at is None:
            return admission
        remaining = self._retry_at - trio.current_time()
        if remaining > 0 or self._probe is not None:
            self._refused += 1
            raise BreakerOpen("the service has not answered lately", retry_after=max(remaining, 0.1))
        self._probe = admission
        return admission

    def statistics(self) -> BreakerStatistics:
        """Return the state at this instant."""
        return BreakerStatistics(self.state, self._failures, self._opened, self._refused)

    def _report(self, admission: Admission, *, answered: bool | None) -> None:
        if self._retry_at is not None and admission is not self._probe:
            return  # admitted before the breaker opened: it tells of the past, only the probe of the present
        was_probe = self._probe is not None
        self._probe = None
        if answered:
            self._failures = 0
            self._retry_at = None
        elif answered is False:
            self._failures += 1
            if was_probe or self._failures >= self._threshold:
                self._opened += 1
                self._retry_at = trio.current_time() + self._cooldown


@attrs.frozen(eq=False)
class Admission:
    """Leave to try once. Exactly one of its methods is called, when the try is over."""

    _breaker: Breaker

    def succeeded(self) -> None:
        """The service answered: close."""
        self._breaker._report(self, answered=True)  # noqa: SLF001  # one half of the breaker

    def failed(self) -> None:
        """The service did not answer: count, and open at the threshold or after a failed probe."""
        self._breaker._report(self, answered=False)  # noqa: SLF001  # as above

    def abandoned(self) -> None:
        """The try ended before it could tell, by a cancellation: give the probe's place to the next caller."""
        self._breaker._report(self, answered=None)  # noqa: SLF001  # as above
