"""What the event log writer does in the database: batches for many users at once, through a role of its own.

Each statement takes arrays, so a batch costs three statements however many runs are in it. After a COMMIT
without an answer the same batch is written again, and what is there already stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from nurseries.postgres.scoped import Statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nurseries.postgres.scoped import Database


PAGE_RUNS: Final = 1000


@attrs.frozen
class Chunk:
    """Consecutive events of one thread; `lines` holds their envelopes, one a line."""

    thread_id: str
    first_seq: int
    last_seq: int
    user_id: str
    lines: str


@attrs.frozen
class NewMessage:
    """A message as it is stored."""

    message_id: str
    thread_id: str
    user_id: str
    run_id: str
    role: str
    content: str
    partial: bool


@attrs.frozen
class RunChange:
    """A run's new status. `started`: it left the queue. `usage` is JSON text."""

    run_id: str
    status: str
    started: bool
    output: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    usage: str | None = None


_EVENTS = """
INSERT INTO events (thread_id, first_seq, last_seq, user_id, lines)
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::uuid[], $5::text[])
"""
_MESSAGES = """
INSERT INTO messages (message_id, thread_id, user_id, run_id, role, content, partial)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::boolean[])
"""
# Only for a repeat: at the first try a number that is taken is a fault that must be seen.
_AGAIN = " ON CONFLICT DO NOTHING"
# A run ends once: what has ended is not changed by a repeated batch. Said in the negative, so that the planner
# takes the primary key: `IN ('queued', 'running')` would match the index runs_unfinished, and read all of it.
_RUNS = """
UPDATE runs SET
    status = new.status,
    started_at = CASE WHEN new.started THEN coalesce(started_at, now()) END,
    ended_at = CASE WHEN new.status = 'running' THEN NULL ELSE now() END,
    output = new.output,
    error_code = new.error_code,
    error_message = new.error_message,
    usage = new.usage::jsonb
FROM unnest($1::uuid[], $2::text[], $3::boolean[], $4::text[], $5::text[], $6::text[], $7::text[])
    AS new (run_id, status, started, output, error_code, error_message, usage)
WHERE runs.run_id = new.run_id AND runs.status NOT IN ('completed', 'failed', 'cancelled', 'interrupted')
"""


async def write(
    database: Database,
    chunks: Sequence[Chunk],
    messages: Sequence[NewMessage],
    changes: Sequence[RunChange],
    *,
    again: bool = False,
) -> None:
    """Write all of it or nothing, in one round trip.

    A run may start and end within one batch; then only its end is written, since an UPDATE takes one row.
    """
    suffix = _AGAIN if again else ""
    statements = [Statement(_EVENTS + suffix, _columns(chunks, 5))]
    if messages:
        statements.append(Statement(_MESSAGES + suffix, _columns(messages, 7)))
    last = {change.run_id: change for change in changes}
    if last:
        statements.append(Statement(_RUNS, _columns(list(last.values()), 7)))
    await database.batch(statements)


def _columns(rows: Sequence[attrs.AttrsInstance], width: int) -> tuple[list[object], ...]:
    if not rows:
        return tuple([] for _ in range(width))
    return tuple(list(column) for column in zip(*map(attrs.astuple, rows), strict=True))


@attrs.frozen
class Unfinished:
    """A run that a lost server left behind, with the last event of its thread."""

    run_id: str
    thread_id: str
    user_id: str
    last_seq: int

    @property
    def thread(self) -> tuple[str, str, int]:
        """Whose thread it is in, and where that thread's log stands."""
        return self.user_id, self.thread_id, self.last_seq


async def unfinished_runs(database: Database, min_age_seconds: float) -> list[Unfinished]:
    """Return the runs older than so many seconds that have not ended, a bounded number of them."""
    rows = await database.fetch(
        "SELECT run_id::text, thread_id::text, user_id::text,"
        " coalesce((SELECT last_seq FROM events WHERE events.thread_id = runs.thread_id ORDER BY first_seq DESC LIMIT 1), 0)"
        " FROM runs WHERE status IN ('queued', 'running') AND created_at <= now() - make_interval(secs => $1)"
        " ORDER BY thread_id, run_id LIMIT $2::int",
        min_age_seconds,
        PAGE_RUNS,
    )
    return [Unfinished(*row) for row in rows]
