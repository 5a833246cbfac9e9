"""Who asks."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # attrs resolves it for those who inspect the class
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from app.store.sessions import LiveSession


@attrs.frozen
class Identity:
    """What a good token or ticket proves.

    Attributes:
        user_id: the user, and the only source of a user id anywhere.
        session_id: the login that the token or ticket came from.
        expires_at: when the proof ends: a token's own end, or for a ticket the end of its session.
        roles: as they stand in the database now.
        email: as the user wrote it.
    """

    user_id: str
    session_id: str
    expires_at: datetime
    roles: tuple[str, ...]
    email: str

    @classmethod
    def of(cls, session: LiveSession, expires_at: datetime) -> Identity:
        """Return the identity that a live session gives."""
        return cls(session.user_id, session.session_id, expires_at, session.roles, session.email)

    def expires_in(self, now: datetime) -> float:
        """Return the seconds that are left."""
        return (self.expires_at - now).total_seconds()
