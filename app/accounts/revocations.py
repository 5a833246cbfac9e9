"""Ends what is open for a session that another process revoked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from app.store.sessions import CHANNEL
from nurseries.errors import NurseriesError
from nurseries.postgres.listen import listen

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from app.accounts.sessions import LiveSessions
    from app.store.sessions import SessionStore

RETRY_SECONDS: Final = 0.25

logger = structlog.get_logger(__name__)


async def listen_for_revocations(
    conninfo: str,
    live: LiveSessions,
    store: SessionStore,
    now: Callable[[], datetime],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen until cancelled, reconnecting when the connection is lost. Started once it listens.

    Args:
        conninfo: of the accounts role; one connection is held.
        live: told of each revocation.
        store: asked, each time that it begins to listen, which sessions ended unheard.
        now: the clock.
        task_status: told when it listens.
    """
    has_started = False
    while True:
        try:
            async with listen(conninfo, CHANNEL) as notifications:
                if watched := live.watched():
                    ended = watched - await store.live_among(watched, now())
                    live.revoke(ended, "the session has ended")
                if not has_started:
                    task_status.started()
                    has_started = True
                async for notification in notifications:
                    session_id, _, reason = notification.payload.partition(" ")
                    live.revoke([session_id], reason)
        except NurseriesError as error:
            logger.warning("revocations by other processes cannot be heard", error=str(error))
        await trio.sleep(RETRY_SECONDS)
