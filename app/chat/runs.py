"""The runs of this server: accepting them, taking them up from a lost one, cancelling them.

A run is one task from the moment its message is durable until its last event is in the log, in the nursery
of its one owner: the server, or the socket that asked for it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from app.chat.acceptance import Accepted, ThreadBusy, admit, check, first_run, key_of, row_of
from app.chat.endings import Endings
from app.chat.execution import Executor
from app.chat.place import RunPlaces
from app.chat.run import new_run
from app.chat.threads import Threads
from app.engine.errors import UnknownAgent
from app.errors import NotFound, RateLimited
from app.store import events as event_store
from app.store import runs as store
from app.store import threads as thread_store
from nurseries.cleanup import cleanup_scope
from nurseries.errors import DatabaseUnavailable, OutcomeUnknown, StorageFull
from nurseries.nursery import start_apart
from nurseries.postgres.failures import QueryFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.chat.endings import Outlook
    from app.chat.execution import OnFailure
    from app.chat.journal import Journal
    from app.chat.run import Ask, Run
    from app.chat.settings import RunSettings
    from app.chat.threads import ThreadRuns
    from app.engine.engine import Catalog
    from nurseries.request import Kernel, Request

FOREIGN_KEY_VIOLATION: Final = "23503"


class Runs:
    """The runs of this process."""

    def __init__(
        self,
        kernel: Kernel,
        journal: Journal,
        catalog: Catalog,
        settings: RunSettings,
        *,
        on_failure: OnFailure = lambda _context, _failure: None,
    ) -> None:
        self._journal = journal
        self._agents = catalog.agents
        self.settings = settings
        self.threads = Threads(journal)
        self.endings = Endings()
        self._runs: dict[str, Run] = {}
        self._taken_up: list[Run] = []
        self._suspended: set[str] = set()
        self._ending: str | None = None
        self._changed = trio.lowlevel.ParkingLot()
        places = RunPlaces(settings)
        self._executor = Executor(kernel, journal, catalog, settings, places, self._has_changed, on_failure)

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs or run_id in self._suspended

    @property
    def asking(self) -> int:
        """How many runs wait for a person."""
        return sum(run.place is not None and run.place.is_left for run in self._runs.values())

    # -- accepting ---------------------------------------------------------------------------------

    async def submit(self, request: Request, ask: Ask, owner: trio.Nursery) -> Accepted:
        """Make a message durable and start its run in `owner`; once for each idempotency key.

        Raises:
            InvalidField: the content, the agent or the key cannot be used.
            NotFound: the user has no such thread.
            ThreadBusy, RateLimited: the thread's run is active, or its queue is full.
        """
        check(ask, self.settings)
        self._agents.get(ask.agent)
        user_id = request.context.user_id
        with self.threads.entered(user_id, ask.thread_id) as thread:
            # One acceptance at a time in a thread, so that messages and runs have the same order.
            async with thread.accepting:
                try:
                    admit(thread, ask, self.settings)
                except (ThreadBusy, RateLimited):
                    repeated = await self._repeated(request, ask)
                    if repeated is None:
                        raise
                    return repeated
                run = new_run(request.context, ask, resumable=self.resumable(ask.agent))
                return await self._accept(request, thread, run, owner)

    async def _accept(self, request: Request, thread: ThreadRuns, run: Run, owner: trio.Nursery) -> Accepted:
        try:
            new, last_seq = await store.accept(request.database, row_of(run, thread.active), key_of(run))
        except QueryFailed as error:
            if error.sqlstate != FOREIGN_KEY_VIOLATION:
                raise
            raise NotFound("no such thread") from None
        except StorageFull:
            raise  # no doubt about the outcome: the database has said that nothing was stored
        except (trio.Cancelled, OutcomeUnknown, DatabaseUnavailable) as error:
            await self._settle_doubt(error, request, thread, run, owner)
        else:
            if not new:
                repeated = await self._repeated(request, run.ask)
                assert repeated is not None
                return repeated
            await self._start(thread, run, owner, last_seq)
        # Nothing has waited since the start, so what comes next in the log is not before the run's first event.
        return Accepted(run.run_id, duplicate=False, run=run, after=thread.log.last_seq if thread.log else 0)

    async def _settle_doubt(
        self, error: BaseException, request: Request, thread: ThreadRuns, run: Run, owner: trio.Nursery
    ) -> None:
        """Look up what a COMMIT without an answer came to: a run that is durable is started, or nothing is."""
        started = False
        with cleanup_scope(), suppress(DatabaseUnavailable):
            if await store.get(request.database, run.run_id) is not None:
                last_seq = await event_store.last_seq(request.database, run.ask.thread_id)
                await self._start(thread, run, owner, last_seq or 0)
                started = True
        if isinstance(error, trio.Cancelled):
            raise error
        if not started:
            raise DatabaseUnavailable("the message was not accepted: try again with the same key") from error

    async def _repeated(self, request: Request, ask: Ask) -> Accepted | None:
        run_id = await first_run(request.database, ask)
        return None if run_id is None else Accepted(run_id, duplicate=True, run=self._runs.get(run_id))

    async def _start(self, thread: ThreadRuns, run: Run, owner: trio.Nursery, last_seq: int) -> None:
        """Give the run its place and its task. No checkpoint, unless its owner has ended since it asked.

        From durable to owned there is no gap: a run whose owner takes no more tasks, as of a socket that closed
        meanwhile, is seen to its end here.
        """
        active = thread.active
        self._enter(thread, run, last_seq)
        try:
            start_apart(owner, self._execute, thread, run, name=run.task_name)
        except RuntimeError:
            run.cancel("disconnected")
            with cleanup_scope():
                await self._execute(thread, run)
            return
        if run.goes_ahead and active is not None:
            discard = run.ask.on_conflict == "rollback"
            active.cancel(run.ask.on_conflict, discard=discard)
            run.replaces = active.run_id if discard else None
        if self._ending is not None:  # accepted while the others were told to end
            self._end(run, self._ending)

    def _enter(self, thread: ThreadRuns, run: Run, last_seq: int) -> None:
        user_id, thread_id = run.context.user_id, run.context.thread_id
        if thread.log is None:
            thread.log = self._journal.open(user_id, thread_id, last_seq)
        thread.add(run, first=run.goes_ahead and run.lost is None)
        self._runs[run.run_id] = run
        self.threads.keep(user_id, thread_id)

    async def _execute(self, thread: ThreadRuns, run: Run) -> None:
        """Execute a run, and forget it."""
        assert thread.log is not None
        try:
            await self._executor.execute(run, thread.log)
        finally:
            if run.suspended:
                self._suspended.add(run.run_id)
            thread.remove(run)
            del self._runs[run.run_id]
            self.threads.drop(run.context.user_id, run.context.thread_id)
            run.done.set()
            # Its end may still wait for the database.
            user_id, thread_id = run.context.user_id, run.context.thread_id
            tell = partial(self.endings.tell, user_id, run.run_id)
            self._journal.when_settled(user_id, thread_id, tell)
            self._has_changed()

    def _has_changed(self) -> None:
        self._changed.unpark_all()

    # -- those of a lost server --------------------------------------------------------------------

    def resumable(self, agent: str) -> bool:
        """Say whether runs of an agent can go on in another server than they began in."""
        try:
            return self._agents.get(agent).resumable
        except UnknownAgent:
            return False

    def take_up(self, run: Run, last_seq: int) -> None:
        """Give a run of a lost server its place in its thread, behind those taken up before; it does not begin yet."""
        user_id, thread_id = run.context.user_id, run.context.thread_id
        with self.threads.entered(user_id, thread_id) as thread:
            self._enter(thread, run, last_seq)
        self._taken_up.append(run)

    def go_on(self, owner: trio.Nursery) -> None:
        """Start the runs that were taken up."""
        for run in self._taken_up:
            thread = self.threads.get(run.context.user_id, run.context.thread_id)
            assert thread is not None
            start_apart(owner, self._execute, thread, run, name=run.task_name)
        self._taken_up.clear()

    # -- asking about them -------------------------------------------------------------------------

    def live(self, user_id: str, run_id: str) -> Run | None:
        """Return a run of this user that has not ended."""
        run = self._runs.get(run_id)
        return run if run is not None and run.context.user_id == user_id else None

    def outlook(self, user_id: str, thread_id: str, run_id: str) -> Outlook:
        """Return whether more can come of a run of this user's."""
        outlook = self.endings.outlook(user_id, run_id)
        if run_id not in self._runs:
            self._journal.when_settled(user_id, thread_id, outlook.end)
        return outlook

    async def row(self, request: Request, run_id: str) -> store.RunRow:
        """Return a run as it stands in the database.

        Raises:
            NotFound: the user has no such run.
        """
        row = await store.get(request.database, run_id)
        if row is None:
            raise NotFound("no such run")
        return row

    async def cancel(self, user_id: str, run_id: str) -> bool:
        """Cancel a run; return when all it owned is released. False: it is not running, or not this user's."""
        run = self.live(user_id, run_id)
        if run is None:
            await trio.lowlevel.checkpoint()
            return False
        run.cancel("requested")
        await self.ended(run)
        return True

    async def ended(self, run: Run) -> None:
        """Return when a run has ended and its end is in the log, or never will be there.

        A run does not wait for its end to be committed for as long as a database may take; this does.
        """
        await run.done.wait()
        await self._journal.settled(run.context.user_id, run.context.thread_id)

    async def delete_thread(self, request: Request, thread_id: str) -> bool:
        """End the thread's runs, then remove it; False where this user has no such thread."""
        with self.threads.entered(request.context.user_id, thread_id) as thread:
            async with thread.accepting:
                thread.deleted = True
                runs = list(thread)
                for run in runs:
                    run.cancel("thread deleted", discard=True)
                for run in runs:
                    await self.ended(run)
                try:
                    return await thread_store.delete(request.database, thread_id)
                finally:  # where the outcome is unknown, too: a reader that comes back finds out
                    self.endings.tell(request.context.user_id, thread_id)

    async def wait_idle(self) -> None:
        """Return when no run is left, but for those that wait for a person and can do so in the next server."""
        while not all(run.waits_for_a_person for run in self._runs.values()):
            await self._changed.park()

    def cancel_all(self, reason: str) -> None:
        """End every run here: those that the next server can go on with are left to it, the others are cancelled."""
        self._ending = reason
        for run in self:
            self._end(run, reason)

    def _end(self, run: Run, reason: str) -> None:
        if run.survives:
            run.suspend()
        else:
            run.cancel(reason)

    def __iter__(self) -> Iterator[Run]:
        return iter(tuple(self._runs.values()))
