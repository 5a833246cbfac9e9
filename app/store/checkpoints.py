"""How far unfinished runs have got: written with the events that tell of it, read by whoever goes on with a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from nurseries.postgres.scoped import Statement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nurseries.postgres.scoped import ScopedDatabase


@attrs.frozen
class Checkpoint:
    """The newest state of a run, or of an operation inside it; see `app.engine.checkpoints`.

    Attributes:
        kept_by: the run id of whose events it is.
        models: what they have cost the whole run so far, JSON text.
    """

    kept_by: str
    run_id: str
    thread_id: str
    user_id: str
    step: int
    output: str
    state: bytes
    models: str


# Removed and written anew, since an UPDATE of the old row could be written only by a role that may read it.
_REMOVE: Final = "DELETE FROM checkpoints WHERE kept_by = ANY($1::text[])"
_END: Final = "DELETE FROM checkpoints WHERE run_id = ANY($1::uuid[])"
_WRITE: Final = """
INSERT INTO checkpoints (kept_by, run_id, thread_id, user_id, step, output, state, models)
SELECT kept_by, run_id, thread_id, user_id, step, output, state, models::jsonb
FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::uuid[], $5::integer[], $6::text[], $7::bytea[], $8::text[])
    AS new (kept_by, run_id, thread_id, user_id, step, output, state, models)
"""


def writes(checkpoints: Iterable[Checkpoint], ended: Iterable[str]) -> list[Statement]:
    """Return what replaces checkpoints by the last one of each keeper, and removes those of runs that ended."""
    gone = set(ended)
    newest = {each.kept_by: each for each in checkpoints if each.run_id not in gone}
    statements = []
    if gone:
        statements.append(Statement(_END, (sorted(gone),)))
    if newest:
        rows = [attrs.astuple(checkpoint) for checkpoint in newest.values()]
        statements.append(Statement(_REMOVE, (sorted(newest),)))
        statements.append(Statement(_WRITE, tuple(list(column) for column in zip(*rows, strict=True))))
    return statements


@attrs.frozen
class Left:
    """What a lost server left of a run, as its user sees it.

    Attributes:
        content: the user's message.
        client_id: a socket's name for it.
        announced: whether the log has an event of the run.
    """

    content: str
    client_id: str | None
    announced: bool


# Of the lines of a thread those are this run's that carry its id. Clocks may step back a little.
_LEFT: Final = """
SELECT m.content, r.client_id, EXISTS (
    SELECT 1 FROM events e WHERE e.thread_id = r.thread_id AND e.created_at >= r.created_at - interval '10 minutes'
    AND strpos(e.lines, '"run_id":"' || r.run_id || '"') > 0
)
FROM runs r JOIN messages m ON m.run_id = r.run_id AND m.role = 'user'
WHERE r.run_id = $1::uuid
"""


async def left(database: ScopedDatabase, run_id: str) -> Left | None:
    """Return what is needed to go on with a run; None where it or its message is gone."""
    row = await database.fetch_one(_LEFT, run_id)
    return None if row is None else Left(*row)


@attrs.frozen
class Kept:
    """A checkpoint as its user sees it; see `Checkpoint`."""

    kept_by: str
    step: int
    output: str
    state: bytes
    models: dict[str, dict[str, int]]


async def of_run(database: ScopedDatabase, run_id: str) -> list[Kept]:
    """Return the checkpoints of a run and of the operations inside it."""
    rows = await database.fetch(
        "SELECT kept_by, step, output, state, models FROM checkpoints WHERE run_id = $1::uuid", run_id
    )
    return [Kept(*row) for row in rows]
