"""A thread's events for one reader that pulls: first from the log, then live, without a gap or a repeat.

A reader that falls behind is not cut off, as a socket is: it holds nothing but its cursor, and reads the log
again where its outbox overflowed.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import trio

from nurseries.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from app.chat.endings import Outlook
    from nurseries.events import Event, Streams
    from nurseries.resume import History

KEEP_ALIVE_SECONDS: Final = 15.0
FEED_EVENTS: Final = 512
ENDS: Final = frozenset({"run_failed", "run_cancelled", "run_interrupted", "agent_completed"})
"""What ends a run. Sub-agents complete under run ids of their own, which begin with the run's."""


async def follow(  # noqa: PLR0913  # who, where, from when, and until when
    streams: Streams, history: History, user_id: str, thread_id: str, after: int, outlook: Outlook
) -> AsyncGenerator[Sequence[Event], None]:
    """Yield pages of events after `after` while more can come; an empty page says that all is quiet, now and then.

    Where the log cannot be read for now the reader waits, as the runs do that write it.
    """
    cursor = after
    while True:
        with streams.listen(user_id, events=FEED_EVENTS) as outbox:
            over = outlook.over  # asked before the log is read: then what it holds is all
            unread = True
            while unread:
                try:
                    page = await history.read(thread_id, cursor)
                except Unavailable as error:
                    yield ()
                    await trio.sleep(error.retry_after)
                    continue
                unread = bool(page)
                if page:
                    cursor = page[-1].seq
                    yield page
            if over:
                return
            try:
                while not over:
                    items: list[Event | bytes] = []
                    with outlook.waiting(KEEP_ALIVE_SECONDS):
                        items = await outbox.take()
                    over = outlook.over
                    if over:
                        items += outbox.take_nowait()
                    page = [
                        item
                        for item in items
                        if not isinstance(item, bytes) and item.thread_id == thread_id and item.seq > cursor
                    ]
                    cursor = page[-1].seq if page else cursor
                    if page or not (items or over):
                        yield page
            except trio.EndOfChannel:
                continue  # it overflowed: what was lost is in the log


async def follow_run(  # noqa: PLR0913  # who, where, from when, and which
    streams: Streams,
    history: History,
    user_id: str,
    thread_id: str,
    after: int,
    outlook: Outlook,
    *,
    run_id: str,
) -> AsyncGenerator[Sequence[Event], None]:
    """Yield the events of one run, its sub-agents' among them, and end with it or where it leaves for the next server."""
    async with aclosing(follow(streams, history, user_id, thread_id, after, outlook)) as pages:
        async for page in pages:
            mine = [event for event in page if event.run_id.partition("_")[0] == run_id]
            if mine or not page:
                yield mine
            if any(event.type in ENDS and event.run_id == run_id for event in mine):
                return
