"""Ending runs that no task runs any more, so that every run ends and its end is known."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

from app.store import journal as store
from nurseries.events import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.chat.journal import Journal
    from app.chat.runs import Runs
    from nurseries.postgres.scoped import Database

INTERRUPTED: Final = "the server was lost while it ran"


async def interrupt_lost_runs(
    runs: Runs, journal: Journal, database: Database, *, min_age_seconds: float = 0.0
) -> int:
    """End the runs in the database that this server does not run, and return how many there were.

    At the start these are the runs of a server that was lost; later there should be none, except where the
    database was lost between accepting a message and starting its run.

    Args:
        runs: what this server runs.
        journal: which must be running.
        database: of the journal's role.
        min_age_seconds: younger runs are left alone: their tasks may be about to start.
    """
    count = 0
    while found := await store.unfinished_runs(database, min_age_seconds):
        lost = [run for run in found if run.run_id not in runs]
        await _interrupt(lost, runs, journal)
        count += len(lost)
        if len(found) < store.PAGE_RUNS or not lost:
            break
    return count


async def _interrupt(lost: Sequence[store.Unfinished], runs: Runs, journal: Journal) -> None:
    for (user_id, thread_id, last_seq), of_thread in groupby(lost, lambda run: run.thread):
        with runs.threads.entered(user_id, thread_id) as thread:
            if thread.log is None:
                thread.log = journal.open(user_id, thread_id, last_seq)
            for run in of_thread:
                origin = Origin.of_ids(user_id, thread_id, run.run_id)
                change = store.RunChange(run.run_id, "interrupted", started=False)
                await journal.append(origin, "run_interrupted", {"reason": INTERRUPTED}, change=change)
                await journal.committed(origin)
