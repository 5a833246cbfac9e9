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
    """The newest state of a run; see `app.engine.checkpoints`. `models` says what they have cost so far, JSON text."""

    run_id: str
    thread_id: str
    user_id: str
    step: int
    output: str
    state: bytes
    models: str


# Removed and written anew, since an UPDATE of the old row could be written only by a role that may read it.
_REMOVE: Final = "DELETE FROM checkpoints WHERE run_id = ANY($1::uuid[])"
_WRITE: Final = """
INSERT INTO checkpoints (run_id, thread_id, user_id, step, output, state, models)
SELECT run_id, thread_id, user_id, step, output, state, models::jsonb
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::integer[], $5::text[], $6::bytea[], $7::text[])
    AS new (run_id, thread_id, user_id, step, output, state, models)
"""


def writes(checkpoints: Iterable[Checkpoint], ended: Iterable[str]) -> list[Statement]:
    """Return what replaces the checkpoints of some runs, the last one of each, and removes those of runs that ended."""
    newest = {checkpoint.run_id: checkpoint for checkpoint in checkpoints}
    gone = set(ended)
    rows = [attrs.astuple(checkpoint) for run_id, checkpoint in newest.items() if run_id not in gone]
    statements = []
    if newest or gone:
        statements.append(Statement(_REMOVE, (sorted(newest.keys() | gone),)))
    if rows:
        statements.append(Statement(_WRITE, tuple(list(column) for column in zip(*rows, strict=True))))
    return statements


@attrs.frozen
class Left:
    """What a lost server left of a run, as its user sees it.

    Attributes:
        content: the user's message.
        client_id: a socket's name for it.
        announced: whether the log has an event of the run.
        step, output, state, models: of the last checkpoint, if there is one.
    """

    content: str
    client_id: str | None
    announced: bool
    step: int | None
    output: str | None
    state: bytes | None
    models: dict[str, dict[str, int]] | None


# Of the lines of a thread those are this run's that carry its id. Clocks may step back a little.
_LEFT: Final = """
SELECT m.content, r.client_id, EXISTS (
    SELECT 1 FROM events e WHERE e.thread_id = r.thread_id AND e.created_at >= r.created_at - interval '10 minutes'
    AND strpos(e.lines, '"run_id":"' || r.run_id || '"') > 0
), c.step, c.output, c.state, c.models
FROM runs r JOIN messages m ON m.run_id = r.run_id AND m.role = 'user'
LEFT JOIN checkpoints c ON c.run_id = r.run_id
WHERE r.run_id = $1::uuid
"""


async def left(database: ScopedDatabase, run_id: str) -> Left | None:
    """Return what is needed to go on with a run; None where it or its message is gone."""
    row = await database.fetch_one(_LEFT, run_id)
    return None if row is None else Left(*row)
