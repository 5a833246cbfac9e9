"""How asking a model can fail: told to the user in words of ours, never in the provider's."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Final

from nurseries.errors import Fault, NurseriesError, Unavailable

_KIND: Final = re.compile(r"[\w.-]{1,64}")
_MAX_DETAIL: Final = 500


class ModelUnavailable(Unavailable):
    """No model answers just now. Nothing has been said."""

    code = "model_unavailable"


class ModelInterrupted(Unavailable):
    """The model broke off in the middle of its answer. What it said is kept, and not said again by another one."""

    code = "model_interrupted"


class ModelRefused(Fault):
    """Every model refuses the request as it is, so that asking again changes nothing."""

    code = "model_refused"


_REASONS: Final = MappingProxyType(
    {
        401: "does not accept the server's key",
        403: "refused",
        404: "does not exist at its provider",
        408: "did not answer in time",
        413: "finds the conversation too long",
        429: "is busy",
        529: "is overloaded",
    }
)


class ModelFailure(NurseriesError):
    """One try of one model has failed. It stays within this package.

    Attributes:
        status: the HTTP status, or the one that the provider's error stands for; None where there was none.
        retry_after: seconds after which the provider wants to be asked again, if it said so.
        kind: the provider's own identifier of the error (`context_length_exceeded`), or nothing.
        detail: the provider's own words. They may quote the conversation: for a log at `debug` at most.
    """

    def __init__(
        self,
        reason: str = "",
        *,
        status: int | None = None,
        retry_after: float | None = None,
        kind: str = "",
        detail: str = "",
    ) -> None:
        if not reason:
            reason = _REASONS.get(status or 0, "is failing" if (status or 0) >= 500 else "refused")
        super().__init__(reason)
        self.status = status
        self.retry_after = retry_after
        self.kind = kind if _KIND.fullmatch(kind) else ""
        self.detail = detail[:_MAX_DETAIL]

    @property
    def transient(self) -> bool:
        """Whether another try may work: the connection, the load or the provider is at fault, not the request."""
        return self.status is None or self.status in {408, 409, 425, 429} or self.status >= 500

    @property
    def final(self) -> bool:
        """Whether the request itself is at fault, so that asking at another time changes nothing."""
        return not self.transient

    @property
    def counts(self) -> bool:
        """Whether the model's breaker counts it.

        Not where the provider answers in order and this request is at fault, or one user could close a model to
        all. Not where it says how long it is busy: that is a rule of its own.
        """
        return self.status is None or self.status in {401, 404, 408} or self.status >= 500


class TimedOut(ModelFailure):
    """The model did not begin, or did not go on, within its time. Asking it again would take as long."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)

    @property
    def transient(self) -> bool:
        """It is not tried a second time for the same answer."""
        return False

    @property
    def final(self) -> bool:
        """At another time it may answer."""
        return False
