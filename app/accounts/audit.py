"""What the security audit trail is told of accounts."""

from __future__ import annotations

import attrs
import structlog

logger = structlog.get_logger(__name__)


@attrs.frozen
class SecurityEvent:
    """Something that an honest client does not do, for the audit trail.

    Attributes:
        kind: `refresh_token_reused`, `ticket_reused`, `signin_code_reused` or `credential_mismatch`.
        user_id: whose credential it was.
        session_id: of which login.
        presented_by: the user who came with it, where that is known and another one.
    """

    kind: str
    user_id: str
    session_id: str
    presented_by: str | None = None


def log_event(event: SecurityEvent) -> None:
    """Write the event to the log: what is done where nothing better is given."""
    logger.warning("security event", **attrs.asdict(event))
