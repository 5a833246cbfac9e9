"""Calls that a person is asked about: written by the journal, read by their user."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # msgspec reads the annotations at run time
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from nurseries.postgres.scoped import Statement
from nurseries.postgres.statement import columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nurseries.postgres.scoped import ScopedDatabase


@attrs.frozen
class Asked:
    """A call that waits for a decision; `arguments` is JSON text."""

    asked_by: str
    call_id: str
    run_id: str
    thread_id: str
    user_id: str
    tool: str
    arguments: str
    expires_at: datetime


@attrs.frozen
class Answered:
    """What was decided. The first decision stays."""

    asked_by: str
    call_id: str
    decision: str
    note: str | None


_ASK: Final = """
INSERT INTO approvals (asked_by, call_id, run_id, thread_id, user_id, tool, arguments, expires_at)
SELECT asked_by, call_id, run_id, thread_id, user_id, tool, arguments::jsonb, expires_at FROM unnest(
    $1::text[], $2::text[], $3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::timestamptz[])
    AS new (asked_by, call_id, run_id, thread_id, user_id, tool, arguments, expires_at)
"""
_ANSWER: Final = """
UPDATE approvals SET decision = new.decision, note = new.note, decided_at = now()
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS new (asked_by, call_id, decision, note)
WHERE approvals.asked_by = new.asked_by AND approvals.call_id = new.call_id AND approvals.decision IS NULL
"""
_VOID: Final = "UPDATE approvals SET decision = 'void', decided_at = now() WHERE run_id = ANY($1::uuid[]) AND decision IS NULL"


def writes(
    asked: Sequence[Asked], answered: Sequence[Answered], ended: Iterable[str], *, again: bool
) -> list[Statement]:
    """Return what asks, what answers, and what ends the questions of runs that ended; `again` for a repeat."""
    statements = []
    if asked:
        statements.append(Statement(_ASK + (" ON CONFLICT DO NOTHING" if again else ""), columns(asked)))
    if answered:
        statements.append(Statement(_ANSWER, columns(answered)))
    if gone := sorted(set(ended)):
        statements.append(Statement(_VOID, (gone,)))
    return statements


@attrs.frozen
class Approval:
    """A call and what was decided about it, as the protocol shows it; `run_id` is that of its events."""

    run_id: str
    call_id: str
    tool: str
    arguments: Any
    requested_at: datetime
    expires_at: datetime
    decision: Literal["approve", "deny", "expired", "void"] | None
    note: str | None
    thread_id: str


_SHOWN: Final = (
    "SELECT asked_by, call_id, tool, arguments, requested_at, expires_at, decision, note, thread_id::text"
    " FROM approvals WHERE "
)


async def get(database: ScopedDatabase, asked_by: str, call_id: str) -> Approval | None:
    """Return one."""
    row = await database.fetch_one(_SHOWN + "asked_by = $1 AND call_id = $2", asked_by, call_id)
    return None if row is None else Approval(*row)


async def of_run(database: ScopedDatabase, run_id: str) -> list[Approval]:
    """Return all of a run, those of operations inside it too, in the order in which they were asked for."""
    rows = await database.fetch(_SHOWN + "run_id = $1::uuid ORDER BY requested_at, call_id", run_id)
    return [Approval(*row) for row in rows]
