"""What is done now and then, a bounded amount at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
import trio

from app.chat.recovery import interrupt_lost_runs
from app.store.runs import remove_old_keys
from nurseries.errors import NurseriesError

if TYPE_CHECKING:
    from app.accounts.service import AccountService
    from app.chat.journal import Journal
    from app.chat.runs import Runs
    from nurseries.postgres.scoped import Database

ORPHAN_SECONDS: Final = 120.0
"""The age from which a run that no task runs is one that was lost: none takes this long to be started."""

KEY_SECONDS: Final = 24 * 3600.0
"""How long a repeat is recognised: clients retry within minutes, and nights happen."""

KEYS_AT_ONCE: Final = 1000

logger = structlog.get_logger(__name__)


class Janitor:
    """Ends what a lost server left running, and removes what has expired."""

    def __init__(  # noqa: PLR0913  # everything that it looks after
        self,
        *,
        accounts: AccountService,
        accounts_database: Database,
        runs: Runs,
        journal: Journal,
        journal_database: Database,
        seconds: float,
    ) -> None:
        self._accounts = accounts
        self._accounts_database = accounts_database
        self._runs = runs
        self._journal = journal
        self._log = journal_database
        self._seconds = seconds

    async def recover_then_run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """End the runs of a server that was lost before anybody is served; then clean up until cancelled."""
        count = await interrupt_lost_runs(self._runs, self._journal, self._log)
        if count:
            logger.warning("ended runs that a lost server left", count=count)
        task_status.started()
        while True:
            await trio.sleep(self._seconds)
            try:
                await self.clean()
            except NurseriesError as error:
                logger.warning("the janitor could not finish; it comes back", error=repr(error))

    async def clean(self) -> None:
        """Go round once."""
        while await self._accounts.remove_expired():
            pass
        while await remove_old_keys(self._accounts_database, KEY_SECONDS, KEYS_AT_ONCE) >= KEYS_AT_ONCE:
            pass
        orphans = await interrupt_lost_runs(
            self._runs, self._journal, self._log, min_age_seconds=ORPHAN_SECONDS
        )
        if orphans:
            logger.error("ended runs that no task was running", count=orphans)
