"""What the security audit trail is told.

Identities, addresses and small facts; never a password, a token, a ticket, a code, or a word of a conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, get_args

import attrs
import structlog

if TYPE_CHECKING:
    from nurseries.events import Event
    from nurseries.inspect import Finding

Kind = Literal[
    # who comes and goes
    "registered",
    "login",
    "login_failed",
    "signin",
    "logout",
    # credentials in the wrong hands, or used again
    "refresh_token_reused",
    "ticket_reused",
    "signin_code_reused",
    "credential_reused",
    # what is somebody else's
    "foreign_id_asked",
    "forbidden",
    "misdelivery_prevented",
    "isolation_finding",
    # what people allowed
    "call_approved",
    "call_denied",
    # limits that were hit
    "login_limited",
    "sessions_limited",
    "rate_limited",
    "connections_limited",
    "sockets_limited",
    "pool_exhausted",
    "busy",
    "socket_flooded",
    "frame_too_big",
    "socket_too_slow",
    # what an administrator did
    "user_added",
    "user_disabled",
    "roles_changed",
    # about the trail itself
    "entries_lost",
    "entries_expired",
]
KINDS: Final[frozenset[Kind]] = frozenset(get_args(Kind))

LOGGED: Final[frozenset[Kind]] = frozenset(
    {
        "refresh_token_reused",
        "ticket_reused",
        "signin_code_reused",
        "credential_reused",
        "foreign_id_asked",
        "isolation_finding",
    }
)
"""What is worth a line in the log besides."""

Detail = str | int | float | bool
MAX_DETAILS: Final = 8
MAX_CHARACTERS: Final = 200

logger = structlog.get_logger(__name__)


def _bounded(details: Mapping[str, Detail]) -> Mapping[str, Detail]:
    """Return a frozen copy of a few short details, in text that any database takes."""
    kept = list(details.items())[:MAX_DETAILS]
    return MappingProxyType({plain(name): plain(v) if isinstance(v, str) else v for name, v in kept})


def plain(text: str) -> str:
    """Return text as printable ASCII of at most `MAX_CHARACTERS`, whatever a client put into it."""
    text = text[:MAX_CHARACTERS]
    if not (text.isascii() and text.isprintable()):
        text = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return text[:MAX_CHARACTERS]


def _address(address: str | None) -> str | None:
    return plain(address)[:64] if address else None


@attrs.frozen
class SecurityEvent:
    """One thing that happened.

    Attributes:
        kind: what it was; docs/operations.md says what each kind means.
        user_id: whose login, credential or thing it was.
        presented_by: the user who came with it, where that is known and another one.
        session_id: the login that it was about.
        connection_id: the socket that it came through.
        thread_id: the thread that it was about.
        run_id: the run that it was about.
        address: where it came from.
        details: small facts by name; text is cut at `MAX_CHARACTERS`.
    """

    kind: Kind
    user_id: str | None = None
    presented_by: str | None = None
    session_id: str | None = None
    connection_id: str | None = None
    thread_id: str | None = None
    run_id: str | None = None
    address: str | None = attrs.field(default=None, converter=_address)
    details: Mapping[str, Detail] = attrs.field(factory=dict, converter=_bounded)

    def log(self) -> None:
        """Write it to the log."""
        known = {name: value for name, value in attrs.asdict(self, recurse=False).items() if value}
        logger.warning("security event", **{**known, "details": dict(self.details)})


def misdelivery(connection_id: str, event: Event) -> SecurityEvent:
    """Return what is told of an event that was about to leave through somebody else's socket."""
    return SecurityEvent(
        "misdelivery_prevented",
        event.user_id,
        connection_id=connection_id,
        thread_id=event.thread_id,
        run_id=event.run_id,
        details={"seq": event.seq, "type": event.type},
    )


def finding(found: Finding) -> SecurityEvent:
    """Return what is told of state that two users share."""
    (one, way), (other, _) = found.paths[:2]
    # The end of the way names the place; its beginning is the same for all that an agent holds.
    way = way if len(way) <= MAX_CHARACTERS else "..." + way[3 - MAX_CHARACTERS :]
    details = {"held": found.kind, "type": found.type, "path": way}
    return SecurityEvent("isolation_finding", one, other, details=details)


Audit = Callable[[SecurityEvent], None]
"""Whom to tell: synchronous, and it never raises."""


def log_event(event: SecurityEvent) -> None:
    """Write the event to the log: what is done where there is no trail."""
    event.log()
