"""What the event log writer does in the database: batches for many users at once, through a role of its own.

Each statement takes arrays, so a batch costs a few statements however many runs are in it. After a COMMIT
without an answer the same batch is written again, and what is there already stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from app.store import approvals, checkpoints
from app.store.approvals import Answered, Asked
from app.store.checkpoints import Checkpoint
from app.store.events import last_seq_of
from nurseries.postgres.scoped import Statement
from nurseries.postgres.statement import columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from app.wire.messages import OnConflict, OnDisconnect
    from nurseries.postgres.scoped import Database


PAGE_THREADS: Final = 200


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
    """A run's new status.

    Attributes:
        started: it left the queue.
        usage: JSON text.
        since_seq: a number of the thread before the run's first event; None leaves it as it is.
        resumes: how often it has gone on after its server was lost; None leaves it as it is.
        kept: it may have a checkpoint or questions, which go with its end.
    """

    run_id: str
    status: str
    started: bool
    output: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    usage: str | None = None
    since_seq: int | None = None
    resumes: int | None = None
    kept: bool = False


Record = NewMessage | RunChange | Checkpoint | Asked | Answered
"""What is committed together with an event."""


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
    usage = new.usage::jsonb,
    since_seq = coalesce(new.since_seq, runs.since_seq),
    resumes = coalesce(new.resumes, runs.resumes)
FROM unnest($1::uuid[], $2::text[], $3::boolean[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::integer[])
    AS new (run_id, status, started, output, error_code, error_message, usage, since_seq, resumes)
WHERE runs.run_id = new.run_id AND runs.status NOT IN ('completed', 'failed', 'cancelled', 'interrupted')
"""
_UNFINISHED: Final = frozenset({"queued", "running"})

LOCK_MILLISECONDS: Final = 100
"""A user's own transaction may hold rows that their events refer to, and others' events are in the same batch."""

_BOUNDED_WAIT: Final = Statement(f"SELECT set_config('lock_timeout', '{LOCK_MILLISECONDS}ms', true)")


async def write(
    database: Database, chunks: Sequence[Chunk], records: Iterable[Record], *, again: bool = False
) -> None:
    """Write all of it or nothing, in one round trip. No lock is waited for longer than `LOCK_MILLISECONDS`.

    A run may start and end within one batch; then only its end is written, since an UPDATE takes one row.
    """
    of: dict[type, list[Any]] = {}
    for record in records:
        of.setdefault(type(record), []).append(record)
    changes: dict[str, RunChange] = {change.run_id: change for change in of.get(RunChange, ())}
    ended = [run_id for run_id, change in changes.items() if change.kept and change.status not in _UNFINISHED]
    suffix = _AGAIN if again else ""
    statements = [_BOUNDED_WAIT]
    if chunks:
        statements.append(Statement(_EVENTS + suffix, columns(chunks)))
    if messages := of.get(NewMessage):
        statements.append(Statement(_MESSAGES + suffix, columns(messages)))
    if changes:
        statements.append(Statement(_RUNS, columns(list(changes.values()))[:-1]))
    statements += checkpoints.writes(of.get(Checkpoint, ()), ended)
    statements += approvals.writes(of.get(Asked, ()), of.get(Answered, ()), ended, again=again)
    await database.batch(statements)


@attrs.frozen
class Unfinished:
    """A run that a lost server left behind, with the last event of its thread.

    Attributes:
        status: `queued` or `running`.
        replaces: the run that it was to go before, and to cancel.
        asks: whether a person is asked about a call of it.
    """

    run_id: str
    thread_id: str
    user_id: str
    last_seq: int
    agent: str
    status: str
    on_conflict: OnConflict
    on_disconnect: OnDisconnect
    replaces: str | None
    since_seq: int
    resumes: int
    asks: bool

    @property
    def thread(self) -> tuple[str, str, int]:
        """Whose thread it is in, and where that thread's log stands."""
        return self.user_id, self.thread_id, self.last_seq


_LOST: Final = f"""
SELECT run_id::text, thread_id::text, user_id::text,
    {last_seq_of("runs.thread_id")},
    agent, status, on_conflict, on_disconnect, replaces::text, since_seq, resumes,
    EXISTS (SELECT FROM approvals WHERE approvals.run_id = runs.run_id AND decision IS NULL)
FROM runs WHERE status IN ('queued', 'running') AND created_at <= now() - make_interval(secs => $1)
    AND thread_id IN (
        SELECT DISTINCT thread_id FROM runs WHERE status IN ('queued', 'running') AND thread_id > $2::uuid
        AND created_at <= now() - make_interval(secs => $1) ORDER BY thread_id LIMIT $3::int)
ORDER BY thread_id, created_at, run_id
"""


async def unfinished_runs(database: Database, min_age_seconds: float, after: str) -> list[Unfinished]:
    """Return the runs older than so many seconds that have not ended, as they were asked for, thread by thread.

    A page holds `PAGE_THREADS` threads, those behind the thread `after`.
    """
    rows = await database.fetch(_LOST, min_age_seconds, after, PAGE_THREADS)
    return [Unfinished(*row) for row in rows]
