"""What becomes of the runs that no task runs: those of a lost server go on, or end so that it is known."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from app.chat.run import lost_run
from app.chat.thread_log import LogBroken
from app.store import journal as store
from nurseries.events import Origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from app.chat.journal import Journal
    from app.chat.runs import Runs
    from app.store.journal import Unfinished
    from nurseries.postgres.scoped import Database

LOST: Final = "the server was lost while it ran"
LOST_TOO_OFTEN: Final = "the server was lost while it ran, and this was not the first time"
FIRST: Final = "00000000-0000-0000-0000-000000000000"
logger = structlog.get_logger(__name__)


@attrs.frozen
class Recovered:
    """How many runs were taken up, and how many had to end."""

    taken_up: int
    interrupted: int


async def recover_runs(runs: Runs, journal: Journal, database: Database) -> Recovered:
    """Take up the runs of a server that was lost, or end them; they go on with `Runs.go_on`.

    A queued run is run as if nothing had happened. One that had begun goes on if its agent is resumable, and if
    the server has not been lost again and again while it ran: it may be the reason. One that was to end with its
    socket has lost it.

    Args:
        runs: of this server, which has none yet.
        journal: which must be running.
        database: of the journal's role.
    """
    taken_up = interrupted = 0

    async def recover(threads: list[list[Unfinished]]) -> None:
        nonlocal taken_up, interrupted
        async with trio.open_nursery() as nursery:
            for of_thread in threads:
                reasons = {run.run_id: _reason(run, of_thread, runs) for run in of_thread}
                for run in _in_order(run for run in of_thread if reasons[run.run_id] is None):
                    runs.take_up(lost_run(run, resumable=runs.resumable(run.agent)), run.last_seq)
                    taken_up += 1
                ending = [(run, reason) for run in of_thread if (reason := reasons[run.run_id]) is not None]
                nursery.start_soon(_interrupt, ending, runs, journal)
                interrupted += len(ending)

    await _each_page(database, 0.0, recover)
    return Recovered(taken_up, interrupted)


async def interrupt_orphans(
    runs: Runs, journal: Journal, database: Database, *, min_age_seconds: float
) -> int:
    """End the runs in the database that this server does not run, and return how many there were.

    There should be none, except where the database was lost between accepting a message and starting its run.

    Args:
        runs: what this server runs.
        journal: which must be running.
        database: of the journal's role.
        min_age_seconds: younger runs are left alone: their tasks may be about to start.
    """
    count = 0
    # Known before the database is asked: a run that has ended meanwhile, or whose end still waits to be written,
    # looks like one that nobody runs.
    busy = journal.open_threads()

    async def interrupt(threads: list[list[Unfinished]]) -> None:
        nonlocal count, busy
        for of_thread in threads:
            if (of_thread[0].user_id, of_thread[0].thread_id) in busy:
                continue
            orphans = [(run, LOST) for run in of_thread if run.run_id not in runs]
            await _interrupt(orphans, runs, journal)
            count += len(orphans)
        busy = journal.open_threads()

    await _each_page(database, min_age_seconds, interrupt)
    return count


async def _each_page(
    database: Database, min_age_seconds: float, handle: Callable[[list[list[Unfinished]]], Awaitable[None]]
) -> None:
    """Hand over the unfinished runs, a bounded number of threads at a time, each with its runs."""
    after = FIRST
    while page := await store.unfinished_runs(database, min_age_seconds, after):
        after = page[-1].thread_id
        await handle([list(of_thread) for _, of_thread in groupby(page, lambda run: run.thread_id)])


def _reason(run: Unfinished, of_thread: Sequence[Unfinished], runs: Runs) -> str | None:
    """Return why a run cannot go on, None if it can."""
    if run.on_disconnect == "cancel" or any(run.run_id == other.replaces for other in of_thread):
        return LOST  # its socket is gone, or it was being cancelled for another run
    if run.status == "queued":
        return None
    if not runs.resumable(run.agent):
        return LOST
    return LOST_TOO_OFTEN if run.resumes >= runs.settings.resumes else None


def _in_order(of_thread: Iterable[Unfinished]) -> list[Unfinished]:
    """Return runs as the queue of their thread had them: the active one, the urgent ones, the last first, the others."""
    asked = list(of_thread)
    running = [run for run in asked if run.status == "running"]
    queued = [run for run in asked if run.status == "queued"]
    urgent = [run for run in queued if run.on_conflict in {"interrupt", "rollback"}]
    return [*running, *reversed(urgent), *(run for run in queued if run not in urgent)]


async def _interrupt(lost: Sequence[tuple[Unfinished, str]], runs: Runs, journal: Journal) -> None:
    """End some runs of one thread, each for its reason."""
    if not lost:
        return
    user_id, thread_id, last_seq = lost[0][0].thread
    with runs.threads.entered(user_id, thread_id) as thread:
        if thread.log is None:
            thread.log = journal.open(user_id, thread_id, last_seq)
        for run, reason in lost:
            origin = Origin.of_ids(user_id, thread_id, run.run_id)
            started = run.status == "running"
            change = store.RunChange(run.run_id, "interrupted", started=started, kept=True)
            try:
                await journal.append(origin, "run_interrupted", {"reason": reason}, change)
                await journal.committed(origin)
            except LogBroken:
                logger.exception("a lost run could not be ended", run_id=run.run_id)
