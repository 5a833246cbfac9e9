"""Accepting, running and cancelling runs.

A run is one task from the moment its message is durable until its last event is in the log, in the nursery
of its one owner: the server, or the socket that asked for it.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from app.chat.keys import check_key, fingerprint
from app.chat.run import Ask, Run, new_run, origin_of
from app.chat.threads import Threads
from app.engine.engine import run_agent
from app.errors import InvalidField, NotFound, RateLimited
from app.store import events as event_store
from app.store import journal as journal_store
from app.store import runs as store
from app.store import threads as thread_store
from app.wire.codec import encode_json
from nurseries.budgets import Budget, BudgetLimits
from nurseries.cleanup import cleanup_scope
from nurseries.errors import Conflict, DatabaseUnavailable, OutcomeUnknown
from nurseries.postgres.failures import QueryFailed
from nurseries.request import describe, run_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.chat.journal import Journal
    from app.chat.threads import ThreadRuns
    from app.engine.agent import Answer
    from app.engine.engine import Catalog
    from nurseries.events import Origin
    from nurseries.request import Failure, Kernel, Request

WAITING_RUNS: Final = 20_000
WAITING_RUNS_PER_USER: Final = 1_000
FOREIGN_KEY_VIOLATION: Final = "23503"
logger = structlog.get_logger(__name__)


class ThreadBusy(Conflict):
    """A run is active in the thread, and `on_conflict` is `reject`."""

    code = "thread_busy"


class KeyReused(InvalidField):
    """The idempotency key was used for something else."""

    code = "idempotency_key_reused"


@attrs.frozen(kw_only=True)
class RunBounds:
    """Bounds of what may be asked for: characters a message, runs that wait in one thread, and that run at once."""

    message_characters: int = 32_000
    queued_per_thread: int = 20
    running_per_user: int = 8
    running: int = 2_000


@attrs.frozen
class Accepted:
    """The answer to an ask.

    Attributes:
        duplicate: the key was used before, and this is the first run's id.
        run: the run, while it lives.
        after: a number before the run's first event in its thread.
    """

    run_id: str
    duplicate: bool
    run: Run | None
    after: int = 0


class Runs:
    """The runs of this process."""

    def __init__(self, kernel: Kernel, journal: Journal, catalog: Catalog, bounds: RunBounds) -> None:
        self._kernel = kernel
        self._journal = journal
        self._catalog = catalog
        self._bounds = bounds
        # Who starts more runs than these has them wait, however long: a run that waits has not failed.
        self._running = Budget(
            BudgetLimits(
                total=bounds.running,
                per_user=bounds.running_per_user,
                wait_seconds=math.inf,
                waiters=WAITING_RUNS,
                waiters_per_user=WAITING_RUNS_PER_USER,
            ),
            name="running runs",
        )
        self.threads = Threads(journal)
        self._runs: dict[str, Run] = {}
        self._idle = trio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    # -- accepting ---------------------------------------------------------------------------------

    async def submit(self, request: Request, ask: Ask, owner: trio.Nursery) -> Accepted:
        """Make a message durable and start its run in `owner`; once for each idempotency key.

        Raises:
            InvalidField: the content, the agent or the key cannot be used.
            NotFound: the user has no such thread.
            ThreadBusy, RateLimited: the thread's run is active, or its queue is full.
        """
        self._check(ask)
        user_id = request.context.user_id
        with self.threads.entered(user_id, ask.thread_id) as thread:
            # One acceptance at a time in a thread, so that messages and runs have the same order.
            async with thread.accepting:
                try:
                    self._admit(thread, ask)
                except (ThreadBusy, RateLimited):
                    repeated = await self._repeated(request, ask)
                    if repeated is None:
                        raise
                    return repeated
                run = new_run(user_id, ask)
                return await self._accept(request, thread, run, owner)

    def _check(self, ask: Ask) -> None:
        if not ask.content.strip():
            raise InvalidField("content", "must not be empty")
        if len(ask.content) > self._bounds.message_characters:
            raise InvalidField("content", f"longer than {self._bounds.message_characters} characters")
        check_key(ask.key, "client_id")
        self._catalog.agents.get(ask.agent)

    def _admit(self, thread: ThreadRuns, ask: Ask) -> None:
        if thread.deleted:
            raise NotFound("no such thread")
        if thread.busy and ask.on_conflict == "reject":
            raise ThreadBusy("a run is active in this thread")
        if len(thread.queue) >= self._bounds.queued_per_thread:
            raise RateLimited(f"{self._bounds.queued_per_thread} runs wait in this thread already")

    async def _accept(self, request: Request, thread: ThreadRuns, run: Run, owner: trio.Nursery) -> Accepted:
        ask = run.ask
        row = store.NewRun(
            run_id=run.run_id,
            thread_id=ask.thread_id,
            agent=ask.agent,
            message_id=run.context.request_id,
            content=ask.content,
        )
        key = None
        if ask.key is not None:
            key = store.Key(ask.key, _fingerprint(ask), encode_json({"run_id": run.run_id}).decode())
        try:
            new, last_seq = await store.accept(request.database, row, key)
        except QueryFailed as error:
            if error.sqlstate != FOREIGN_KEY_VIOLATION:
                raise
            raise NotFound("no such thread") from None
        except (trio.Cancelled, OutcomeUnknown, DatabaseUnavailable) as error:
            await self._settle_doubt(error, request, thread, run, owner)
        else:
            if not new:
                repeated = await self._repeated(request, ask)
                assert repeated is not None
                return repeated
            self._start(thread, run, owner, last_seq)
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
                self._start(thread, run, owner, last_seq or 0)
                started = True
        if isinstance(error, trio.Cancelled):
            raise error
        if not started:
            raise DatabaseUnavailable("the message was not accepted: try again with the same key") from error

    async def _repeated(self, request: Request, ask: Ask) -> Accepted | None:
        if ask.key is None:
            return None
        stored = await store.stored_answer(request.database, ask.key)
        if stored is None:
            return None
        asked, answer = stored
        if asked != _fingerprint(ask):
            raise KeyReused("client_id", "this idempotency key was used for something else")
        run_id = answer["run_id"]
        return Accepted(run_id, duplicate=True, run=self._runs.get(run_id))

    def _start(self, thread: ThreadRuns, run: Run, owner: trio.Nursery, last_seq: int) -> None:
        """Give the run its place and its task. Synchronous: from durable to owned there is no gap."""
        user_id, thread_id = run.context.user_id, run.context.thread_id
        if thread.log is None:
            thread.log = self._journal.open(user_id, thread_id, last_seq)
        active = thread.active
        ahead = run.ask.on_conflict in {"interrupt", "rollback"}
        thread.add(run, first=ahead)
        if ahead and active is not None:
            discard = run.ask.on_conflict == "rollback"
            active.cancel(run.ask.on_conflict, discard=discard)
            run.replaces = active.run_id if discard else None
        self._runs[run.run_id] = run
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        self.threads.keep(user_id, thread_id)
        owner.start_soon(self._execute, thread, run, name=f"run {run.run_id}")

    # -- running -----------------------------------------------------------------------------------

    async def _execute(self, thread: ThreadRuns, run: Run) -> None:
        """Run it, and see it to its end whatever happens. Nothing but a cancellation leaves this task."""
        origin = origin_of(run)
        result: Answer | Failure | None = None
        try:
            with cleanup_scope():
                await self._journal.append(origin, "run_queued", run.queued_payload())
            with run.scope:
                await run.turn.wait()
                async with self._running.lease(run.context.user_id):
                    run.started, run.status = True, "running"
                    change = journal_store.RunChange(run.run_id, "running", started=True)
                    await self._journal.append(origin, "agent_started", run.started_payload(), change=change)
                    result = await run_request(self._kernel, run.context, partial(self._work, run))
        except Exception as error:
            logger.exception("run broke", run_id=run.run_id)
            result = describe(error)
        finally:
            with cleanup_scope():
                await self._log_end(origin, run, result)
            self._forget(thread, run)

    async def _work(self, run: Run, request: Request) -> Answer:
        if run.replaces is not None:
            await store.remove_messages(request.database, run.replaces)
        return await run_agent(
            request,
            self._catalog,
            agent=run.ask.agent,
            content=run.ask.content,
            message_id=run.message_id,
            on_said=run.hear,
        )

    async def _log_end(self, origin: Origin, run: Run, result: Answer | Failure | None) -> None:
        ending = run.end(result)
        try:
            await self._journal.append(
                origin, ending.event_type, ending.payload, change=ending.change, message=ending.message
            )
            await self._journal.committed(origin)
        except Exception:
            logger.exception("a run's end could not be logged", run_id=run.run_id)

    def _forget(self, thread: ThreadRuns, run: Run) -> None:
        thread.remove(run)
        del self._runs[run.run_id]
        self.threads.drop(run.context.user_id, run.context.thread_id)
        run.done.set()
        if not self._runs:
            self._idle.set()

    # -- asking about them -------------------------------------------------------------------------

    def live(self, user_id: str, run_id: str) -> Run | None:
        """Return a run of this user that has not ended."""
        run = self._runs.get(run_id)
        return run if run is not None and run.context.user_id == user_id else None

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
        await run.done.wait()
        return True

    async def delete_thread(self, request: Request, thread_id: str) -> bool:
        """End the thread's runs, then remove it; False where this user has no such thread."""
        with self.threads.entered(request.context.user_id, thread_id) as thread:
            async with thread.accepting:
                thread.deleted = True
                runs = list(thread)
                for run in runs:
                    run.cancel("thread deleted", discard=True)
                for run in runs:
                    await run.done.wait()
                return await thread_store.delete(request.database, thread_id)

    async def wait_idle(self) -> None:
        """Return when no run is left."""
        await self._idle.wait()

    def cancel_all(self, reason: str) -> None:
        """Cancel every run."""
        for run in list(self._runs.values()):
            run.cancel(reason)

    def __iter__(self) -> Iterator[Run]:
        return iter(tuple(self._runs.values()))


def _fingerprint(ask: Ask) -> bytes:
    return fingerprint(ask.thread_id, ask.content, ask.agent, ask.on_conflict, ask.on_disconnect)
