"""What was said before: queries over one user's messages, for agents and tools.

Every query goes through a `ScopedDatabase`, so that whose rows are read is not a parameter of any of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from datetime import datetime

    from nurseries.postgres.scoped import ScopedDatabase

_QUEUED: Final = 64
"""Messages of later, queued runs that may stand among the newest rows; more than a thread may have in its queue."""

_SNIPPET_SOURCE: Final = 20_000
"""Characters of a message that a snippet is sought in."""

_SNIPPET: Final = 300
"""Characters of a snippet; a message that is no longer is its own snippet."""

_BEFORE: Final = 100
"""How many of them stand before the word that was sought."""

_WORD: Final = re.compile(r"\w+")


@attrs.frozen
class HistoryMessage:
    """One message of a conversation; `role` is `user` or `assistant`."""

    message_id: str
    run_id: str
    role: str
    content: str
    created_at: datetime


@attrs.frozen
class FoundMessage:
    """One message that a search found, with the words in their surroundings."""

    message_id: str
    thread_id: str
    role: str
    created_at: datetime
    snippet: str


async def conversation_before(
    database: ScopedDatabase, *, thread_id: str, run_id: str, limit: int
) -> tuple[HistoryMessage, ...]:
    """Return the last `limit` messages of the thread before those of the run, oldest first.

    A message that waits in the queue is stored before the answer to the one before it is, so rows are not
    in the order of the conversation: they are grouped by run, and runs that were asked for later are left out.
    """
    rows = await database.fetch(
        "SELECT message_id::text, run_id::text, role, content, created_at FROM messages"
        " WHERE thread_id = $1::uuid ORDER BY position DESC LIMIT $2::int",
        thread_id,
        limit + _QUEUED,
    )
    this_run = _asked_run(run_id)
    runs: dict[str, list[HistoryMessage]] = {}
    later: set[str] = set()
    asked = False
    for message in (HistoryMessage(*row) for row in reversed(rows)):
        asked = asked or message.run_id == this_run
        if asked and message.role == "user":
            later.add(message.run_id)
        if message.run_id not in later:
            runs.setdefault(message.run_id, []).append(message)
    messages = [message for run in runs.values() for message in run]
    return tuple(messages[-limit:]) if limit > 0 else ()


async def search(
    database: ScopedDatabase, query: str, *, run_id: str, limit: int
) -> tuple[FoundMessage, ...]:
    """Return the user's messages that match `query` (in the syntax of web search engines), newest first.

    Messages of the run that asks are left out. A query's long tokens are parsed in pieces, as those of the column
    `words` are, for the parser's time grows with the square of their length. `ts_headline` is not used for the
    snippets: where words repeat, its time grows with the product of query and text.
    """
    rows = await database.fetch(
        "SELECT message_id::text, thread_id::text, role, created_at, substr(content, start, $4::int) FROM ("
        "  SELECT message_id, thread_id, role, created_at, content, position, CASE"
        "   WHEN length(content) <= $4::int THEN 1"
        "   ELSE greatest(strpos(lower(left(content, $5::int)), lower($6::text)) - $7::int, 1) END AS start"
        "  FROM messages, websearch_to_tsquery('simple', regexp_replace($1::text, '(\\S{100})', '\\1 ', 'g')) AS query"
        "  WHERE words @@ query AND run_id <> $2::uuid ORDER BY position DESC LIMIT $3::int"
        ") AS found ORDER BY position DESC",
        query,
        _asked_run(run_id),
        limit,
        _SNIPPET,
        _SNIPPET_SOURCE,
        _sought(query),
        _BEFORE,
    )
    return tuple(FoundMessage(*row) for row in rows)


def _sought(query: str) -> str:
    """Return a word of the query around which a snippet is cut, "" where there is none."""
    words = (word for word in query.split() if not word.startswith("-") and word.lower() != "or")
    return next((found[0] for word in words if (found := _WORD.search(word))), "")


def _asked_run(run_id: str) -> str:
    """Return the id of the run that the user asked for: a child operation's run id begins with it."""
    return run_id.partition("_")[0]
