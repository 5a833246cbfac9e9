"""What the application refuses, and how each refusal leaves the process: one table.

`OUTCOMES` maps an exception's class to an HTTP status, a close code and a wire error. The most specific
class wins, so a subclass needs a row only where it differs. The stable `code` of an HTTP problem is the
class's own `code`; what people read is the exception's message, and for a `Fault` nothing of it leaves.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import attrs

from nurseries import errors as kernel
from nurseries.errors import CallerError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

# -- what was sent -----------------------------------------------------------------------------------


class BadJson(CallerError):
    """The body or frame is not JSON, or JSON that no two parsers read alike (duplicate keys, NaN)."""

    code = "bad_json"


class UnsupportedEncoding(CallerError):
    """The body is compressed, or encoded in some other way."""

    code = "unsupported_media_type"


class InvalidField(CallerError):
    """A field is missing, unknown, of the wrong type or out of its bounds.

    Attributes:
        field: its name, or "" when the body as a whole is meant.
    """

    code = "invalid_field"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field


class WeakPassword(InvalidField):
    """The password is too short, too long, too common, or the email address itself."""

    code = "weak_password"


class InvalidEmail(InvalidField):
    """The address does not look like one."""

    code = "invalid_email"


class MessageTooLong(InvalidField):
    """The message to an agent is longer than one may be."""

    code = "too_large"


# -- who asks ----------------------------------------------------------------------------------------


class Unauthenticated(CallerError):
    """No identity, or none that holds any longer. Why is not told to the caller."""

    code = "unauthenticated"


class LoginFailed(Unauthenticated):
    """Email and password do not belong together, or the user is disabled. Which, is not told."""

    code = "invalid_credentials"


class Forbidden(CallerError):
    """The identity is known, and may not do this."""

    code = "forbidden"


class RegistrationClosed(Forbidden):
    """New users are made by an administrator here."""

    code = "registration_closed"


class InvalidGrant(CallerError):
    """A refresh token or a sign-in code that is unknown, used, expired or revoked (RFC 6749, 5.2)."""

    code = "invalid_grant"


# -- what is there -----------------------------------------------------------------------------------


class NotFound(CallerError):
    """It does not exist, or belongs to somebody else: both are answered alike."""

    code = "not_found"


class EmailTaken(CallerError):
    """Another account has this address."""

    code = "email_taken"


# -- how much ----------------------------------------------------------------------------------------


class RateLimited(Unavailable):
    """Too much from one caller. `retry_after` says when the next try is looked at."""

    code = "rate_limited"


class LoginLimited(RateLimited):
    """Too many failed logins for one account from one address."""


class TooLarge(CallerError):
    """More than one caller may send or keep."""

    code = "too_large"


class Busy(Unavailable):
    """Too much from all callers together."""

    code = "busy"


# -- the table ---------------------------------------------------------------------------------------


@attrs.frozen
class Outcome:
    """How one kind of exception leaves the process.

    Attributes:
        status: of the HTTP response.
        close: the code that a socket is closed with; None where an error ends nothing.
        wire: the code of an error frame on a socket.
    """

    status: int
    close: int | None
    wire: str


OUTCOMES: Final[Mapping[type[BaseException], Outcome]] = MappingProxyType(
    {
        # the kernel's
        kernel.CallerError: Outcome(400, None, "bad_frame"),
        kernel.InvalidContext: Outcome(422, None, "bad_frame"),
        kernel.Conflict: Outcome(409, None, "conflict"),
        kernel.Unavailable: Outcome(503, None, "database_unavailable"),
        kernel.PoolExhausted: Outcome(503, None, "pool_exhausted"),
        kernel.Draining: Outcome(503, 1012, "draining"),
        kernel.TooManySessions: Outcome(429, 1008, "rate_limited"),
        kernel.OutcomeUnknown: Outcome(503, None, "database_unavailable"),
        kernel.StorageFull: Outcome(507, None, "database_unavailable"),
        kernel.StatementTimeout: Outcome(504, None, "internal"),
        # ours
        BadJson: Outcome(400, None, "bad_json"),
        InvalidField: Outcome(422, None, "bad_frame"),
        MessageTooLong: Outcome(422, None, "too_large"),
        UnsupportedEncoding: Outcome(415, None, "bad_frame"),
        Unauthenticated: Outcome(401, 4401, "not_found"),
        Forbidden: Outcome(403, 4403, "not_found"),
        InvalidGrant: Outcome(400, None, "bad_frame"),
        NotFound: Outcome(404, None, "not_found"),
        EmailTaken: Outcome(409, None, "conflict"),
        TooLarge: Outcome(413, None, "too_large"),
        RateLimited: Outcome(429, 1008, "rate_limited"),
        # whatever else is raised is a fault of ours
        BaseException: Outcome(500, 1011, "internal"),
    }
)


def outcome_of(error: BaseException) -> Outcome:
    """Return the row of the most specific class of `error`."""
    return next(OUTCOMES[cls] for cls in type(error).__mro__ if cls in OUTCOMES)


def is_fault(error: BaseException) -> bool:
    """Say whether `error` is ours to explain in the log, and not the caller's to read."""
    return not isinstance(error, (CallerError, Unavailable))


def code_of(error: BaseException) -> str:
    """Return the stable code that stands for `error` outside."""
    return error.code if isinstance(error, kernel.NurseriesError) else kernel.NurseriesError.code


def message_of(error: BaseException) -> str:
    """Return what a caller may read: the message of what is theirs, and nothing of what broke here."""
    if isinstance(error, kernel.DatabaseUnavailable):
        return error.summary  # its own words name hosts, paths and roles
    return "something broke here; it has been logged" if is_fault(error) else str(error)
