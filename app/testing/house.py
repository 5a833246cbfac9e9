"""All that runs agents, without sockets and passwords: for tests that decide the schedule, or cancel at every moment.

Real are the database, the pools, the event log, the runs and the engine, wired as in a server. Whoever asks is taken
to have been recognised.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import attrs
import psycopg
import trio

from app.chat.calls import open_call
from app.chat.run import Ask
from app.chat.runs import Runs
from app.database import Store
from app.engine.models.making import open_models
from app.isolation import open_scopes, shared_by_design
from app.main import make_catalog, open_pools
from app.settings import Settings
from nurseries.groups import alone
from nurseries.inspect import Finding, roots_of, shared_between
from nurseries.testing.isolation import listing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.chat.run import Run
    from app.engine.engine import Catalog
    from app.main import Pools
    from app.testing.database import Database


@attrs.frozen(eq=False)
class House:
    """What a server is below its sockets.

    Attributes:
        pools: its connections, its event log, its streams.
        runs: its runs.
        nursery: of the runs that outlive who asked for them; the house waits for them in the end.
        catalog: its agents, and what they use.
    """

    pools: Pools
    runs: Runs
    nursery: trio.Nursery
    catalog: Catalog
    _admin: psycopg.Connection[Any]

    def user(self) -> Guest:
        """Make somebody with a conversation."""
        user_id, thread_id = str(uuid4()), str(uuid4())
        self._admin.execute(
            "INSERT INTO users (user_id, email, email_key, password_hash) VALUES (%s, %s, %s, '')",
            (user_id, f"{user_id}@example.org", f"{user_id}@example.org"),
        )
        self._admin.execute("INSERT INTO threads (thread_id, user_id) VALUES (%s, %s)", (thread_id, user_id))
        return Guest(user_id, thread_id, self)

    def shared(self) -> list[Finding]:
        """Return what two users who have something open now both reach and could change; a look takes no step."""
        scopes = open_scopes(self.pools.kernel, (), self.pools.streams, self.runs)
        roots = {
            user: [root for thing in things for root in roots_of(thing)] for user, things in scopes.items()
        }
        infrastructure = shared_by_design(self.nursery, self.catalog).and_also(types=(House,))
        return shared_between(roots, infrastructure=infrastructure)

    def assert_isolated(self) -> None:
        """Fail if there is anything that is `shared`.

        Raises:
            AssertionError: there is; the message has the way to it from either side.
        """
        __tracebackhide__ = True
        findings = self.shared()
        assert not findings, listing(findings)

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Return the rows of a statement, as the owner of the database sees them: those of all users."""
        return self._admin.execute(sql.encode(), params or None).fetchall()


@attrs.frozen
class Guest:
    """Somebody who uses a house, in one conversation."""

    user_id: str
    thread_id: str
    house: House = attrs.field(repr=False)

    async def ask(self, agent: str, content: str, **options: Any) -> str:
        """Have an agent answer, and return the answer. Cancelling this is to the run what a disconnect is.

        Args:
            agent: its name.
            content: the message.
            options: fields of `app.chat.run.Ask`.

        Raises:
            AssertionError: the run failed.
        """
        __tracebackhide__ = True
        async with trio.open_nursery() as nursery:
            run = await self.submit(agent, content, nursery, **options)
        assert run.failure is None, f"{run.failure.code}: {run.failure.message}"
        return run.output or ""

    async def submit(self, agent: str, content: str, owner: trio.Nursery, **options: Any) -> Run:
        """Have a message accepted, and return its run, which begins in `owner`."""
        ask = Ask(thread_id=self.thread_id, content=content, agent=agent, **options)
        async with open_call(self.house.pools.kernel, self.user_id, thread_id=self.thread_id) as request:
            accepted = await self.house.runs.submit(request, ask, owner)
        assert accepted.run is not None
        return accepted.run


@asynccontextmanager
async def open_house(database: Database, **settings: Any) -> AsyncIterator[House]:
    """Have a house on `database` for the body of the block, then wait for its runs.

    Args:
        database: migrated, with its login roles.
        settings: what differs from the defaults: any field of `Settings`.
    """
    chosen = Settings(database_url=database.owner, **settings)
    store = Store(database.access, b"", b"", None)
    with alone(), psycopg.connect(database.owner, autocommit=True) as admin:
        async with (
            open_models(chosen.all_models()) as models,
            open_pools(chosen, store) as pools,
            trio.open_nursery() as services,
        ):
            catalog = make_catalog(chosen, models)
            runs = Runs(pools.kernel, pools.journal, catalog, chosen.runs)
            await services.start(pools.journal.run)
            async with trio.open_nursery() as nursery:
                yield House(pools, runs, nursery, catalog, admin)
                await runs.wait_idle()
            services.cancel_scope.cancel()
