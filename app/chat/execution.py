"""Executing one run: from its place in the queue to its last event, which comes whatever happens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from app.chat.ledger import RunLedger
from app.chat.place import Place
from app.chat.restore import restore
from app.chat.run import origin_of
from app.engine.checkpoints import Past
from app.engine.engine import run_agent
from app.store import runs as store
from nurseries.cleanup import cleanup_scope
from nurseries.errors import Fault
from nurseries.request import Failure, describe, run_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.chat.journal import Journal
    from app.chat.place import RunPlaces
    from app.chat.run import Run
    from app.chat.settings import RunSettings
    from app.chat.thread_log import ThreadLog
    from app.engine.engine import Catalog
    from app.engine.request import Answer
    from nurseries.context import UserContext
    from nurseries.events import Origin
    from nurseries.request import Kernel, Request

    OnFailure = Callable[[UserContext, Failure], object]

logger = structlog.get_logger(__name__)


class RunTimeout(Fault):
    """The run had not come to its end within the time that a run may take."""

    code = "run_timeout"


class Executor:
    """Executes runs, each in a request of its own.

    `on_wait` is called when one begins to wait for a person, `on_failure` when one has failed.
    """

    def __init__(  # noqa: PLR0913  # the wiring of a run
        self,
        kernel: Kernel,
        journal: Journal,
        catalog: Catalog,
        settings: RunSettings,
        places: RunPlaces,
        on_wait: Callable[[], object],
        on_failure: OnFailure,
    ) -> None:
        self._kernel = kernel
        self._journal = journal
        self._catalog = catalog
        self._settings = settings
        self._places = places
        self._on_wait = on_wait
        self._on_failure = on_failure

    async def execute(self, run: Run, log: ThreadLog) -> None:
        """Run it, and see it to its end. Nothing but a cancellation leaves this task."""
        origin = origin_of(run)
        result: Answer | Failure | None = None
        place = run.place = Place(self._places, run.context.user_id, self._on_wait)
        try:
            if run.lost is None:
                self._journal.append_nowait(origin, "run_queued", run.queued_payload())
            with run.scope:
                await run.turn.wait()
                if run.lost is None or not run.lost.asks:  # else it goes on by waiting for a person
                    await place.take()
                if run.lost is None:
                    await self._start(run, log)
                with place.scope:
                    result = await run_request(self._kernel, run.context, partial(self._work, run, log))
                if place.scope.cancelled_caught:
                    result = describe(RunTimeout(f"no end after {self._settings.seconds:g} seconds"))
        except Exception as error:
            logger.exception("run broke", run_id=run.run_id)
            result = describe(error)
        finally:
            if isinstance(result, Failure):
                self._on_failure(run.context, result)
            place.give_up()
            with cleanup_scope():
                await self._log_end(origin, run, result)
            for question in run.questions.values():
                question.settled.set()

    async def _start(self, run: Run, log: ThreadLog) -> None:
        run.started, run.status = True, "running"
        change = run.started_change(log.last_seq)
        await self._journal.append(origin_of(run), "agent_started", run.started_payload(), change)

    async def _work(self, run: Run, log: ThreadLog, request: Request) -> Answer:
        past = Past(run_id=run.run_id)
        assert run.place is not None
        if run.lost is not None:
            past = await restore(run, request, self._journal)
            if not run.is_asking:
                await run.place.take()  # it was left to wait for somebody, and does so no more
            if not run.started:
                await self._start(run, log)
        if run.replaces is not None:
            await store.remove_messages(request.database, run.replaces)
        return await run_agent(
            request,
            self._catalog,
            agent=run.ask.agent,
            content=run.ask.content,
            message_id=run.message_id,
            on_said=run.hear,
            meter=run.meter,
            checkpoints=RunLedger(
                keeping=run.resumable and run.ask.on_disconnect == "continue",
                run=run,
                journal=self._journal,
                place=run.place,
                approval_seconds=self._settings.approval_seconds,
                origin=origin_of(run),
                past=past,
            ),
        )

    async def _log_end(self, origin: Origin, run: Run, result: Answer | Failure | None) -> None:
        try:
            if result is None and run.suspended:
                change = run.suspended_change()
                records = () if change is None else (change,)
                self._journal.append_nowait(origin, "run_suspended", {"reason": "shutdown"}, *records)
            else:
                ending = run.end(result)
                self._journal.append_nowait(origin, ending.event_type, ending.payload, *ending.records)
            await self._journal.committed(origin)
        except Exception:
            logger.exception("a run's end could not be logged", run_id=run.run_id)
