"""Events for one HTTP client that reads them as they happen."""

from __future__ import annotations

from contextlib import aclosing, nullcontext, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs
import trio

from app.chat.dispatch import ThreadHistory
from app.chat.feed import follow, follow_run
from app.errors import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from app.accounts.identity import Identity
    from app.accounts.service import AccountService
    from app.chat.acceptance import Accepted
    from app.chat.runs import Runs
    from nurseries.events import Event, Streams
    from nurseries.request import Kernel
    from nurseries.server import Server

    Pages = AsyncGenerator[Sequence[Event], None]


@attrs.frozen
class Feeds:
    """Makes the pages of events that a user may read. They end when the user's session or access token does."""

    _service: AccountService
    _kernel: Kernel
    _server: Server
    _streams: Streams
    _runs: Runs

    async def of_thread(self, identity: Identity, thread_id: str, after: int) -> tuple[Pages, int]:
        """Return the events of a thread after a number, then those to come, and the number that they really come after.

        They end when the thread or the server does. A number that the log never reached cannot be honoured:
        then they come after the log's last one.

        Raises:
            NotFound: the user has no such thread.
        """
        outlook = self._runs.endings.outlook(identity.user_id, thread_id)
        history = ThreadHistory(self._kernel, identity.user_id)
        cursor = min(after, await history.last_seq(thread_id))
        pages = follow(self._streams, history, identity.user_id, thread_id, cursor, outlook)
        return self._watched(identity, pages, endless=True), cursor

    def of_run(self, identity: Identity, thread_id: str, accepted: Accepted) -> Pages:
        """Return the events of a run; they end with it, also where its end could not be written."""
        run_id = accepted.run_id
        outlook = self._runs.outlook(identity.user_id, thread_id, run_id)
        history = ThreadHistory(self._kernel, identity.user_id)
        pages = follow_run(
            self._streams, history, identity.user_id, thread_id, accepted.after, outlook, run_id=run_id
        )
        return self._watched(identity, pages)

    async def _watched(self, identity: Identity, pages: Pages, *, endless: bool = False) -> Pages:
        """Pass the pages on until the identity's session ends, or the server where the stream would not."""
        deadline = trio.current_time() + identity.expires_in(datetime.now(UTC))
        scope, ended = trio.CancelScope(), False

        def end(_reason: str = "") -> None:
            nonlocal ended
            ended = True
            scope.cancel()

        until_restart = self._server.endless(end) if endless else nullcontext()
        # A session that has ended since the request was let in has an empty stream: the answer has begun.
        with suppress(Unauthenticated):
            async with aclosing(pages), self._service.watching(identity, end):
                with until_restart:
                    while not ended:
                        page: Sequence[Event] | None = None
                        # A scope for each page, since no scope can be entered twice.
                        with trio.CancelScope(deadline=deadline) as scope:
                            page = await anext(pages, None)
                        if page is None:
                            return
                        yield page
