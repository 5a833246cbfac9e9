"""Open sockets and streams end when their session does, on every server at once.

`LiveSessions` knows what is open in this process. A session that is revoked here ends its sockets in the
same step; one that is revoked by another process (another server, the command line) is announced by
PostgreSQL's NOTIFY, in the transaction that revoked it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

logger = structlog.get_logger(__name__)


class LiveSessions:
    """Who is to be told when a session is revoked. It holds as many entries as sockets and streams are open."""

    def __init__(self) -> None:
        self._watches: dict[str, dict[object, Callable[[str], None]]] = {}

    @contextmanager
    def watch(self, session_id: str, on_revoked: Callable[[str], None]) -> Iterator[None]:
        """Call `on_revoked` with the reason when the session is revoked during the body of the block.

        It is called by whoever revokes: it must only set things off (close, cancel), and return.
        """
        entry = object()
        watches = self._watches.setdefault(session_id, {})
        watches[entry] = on_revoked
        try:
            yield
        finally:
            del watches[entry]
            if not watches:
                del self._watches[session_id]

    def revoke(self, session_ids: Iterable[str], reason: str) -> None:
        """End everything that is open for the sessions. Harmless when repeated."""
        for session_id in session_ids:
            for on_revoked in list(self._watches.get(session_id, {}).values()):
                try:
                    on_revoked(reason)
                except Exception:
                    # One socket that cannot be told must not save the others of a stolen session.
                    logger.exception("a socket was not told that its session ended", session_id=session_id)

    def watched(self) -> frozenset[str]:
        """Return the sessions that have something open."""
        return frozenset(self._watches)
