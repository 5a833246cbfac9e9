"""What is done now and then, a bounded amount at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import structlog
import trio

from app.chat.recovery import interrupt_orphans, recover_runs
from app.store import keys
from nurseries.errors import NurseriesError

if TYPE_CHECKING:
    from app.accounts.service import AccountService
    from app.audit.trail import Trail
    from app.chat.journal import Journal
    from app.chat.runs import Runs
    from app.leaks import Leaks
    from nurseries.postgres.scoped import Database

ORPHAN_SECONDS: Final = 120.0
"""The age from which a run that no task runs is one that was lost: none takes this long to be started."""

KEY_SECONDS: Final = 24 * 3600.0
"""How long a repeat is recognised: clients retry within minutes, and nights happen."""

KEYS_AT_ONCE: Final = 1000

logger = structlog.get_logger(__name__)


class Janitor:
    """Ends what a lost server left running, removes what has expired, and looks for leaks."""

    def __init__(  # noqa: PLR0913  # everything that it looks after
        self,
        *,
        accounts: AccountService,
        accounts_database: Database,
        trail: Trail,
        runs: Runs,
        journal: Journal,
        journal_database: Database,
        leaks: Leaks,
        seconds: float,
    ) -> None:
        self._accounts = accounts
        self._accounts_database = accounts_database
        self._trail = trail
        self._runs = runs
        self._journal = journal
        self._log = journal_database
        self._leaks = leaks
        self._seconds = seconds

    async def recover_then_run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Take up or end the runs of a lost server before anybody is served; then clean up until cancelled."""
        recovered = await recover_runs(self._runs, self._journal, self._log)
        if recovered.taken_up or recovered.interrupted:
            logger.warning("found runs of an earlier server", **attrs.asdict(recovered))
        task_status.started()
        while True:
            await trio.sleep(self._seconds)
            self._leaks.go_round()
            try:
                await self.clean()
            except NurseriesError as error:
                logger.warning("the janitor could not finish; it comes back", error=repr(error))

    async def clean(self) -> None:
        """Go round once."""
        while await self._accounts.remove_expired():
            pass
        while await keys.remove_old(self._accounts_database, KEY_SECONDS, KEYS_AT_ONCE) >= KEYS_AT_ONCE:
            pass
        await self._trail.expire()
        orphans = await interrupt_orphans(
            self._runs, self._journal, self._log, min_age_seconds=ORPHAN_SECONDS
        )
        if orphans:
            logger.error("ended runs that no task was running", count=orphans)
