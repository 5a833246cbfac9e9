"""The wiring: everything that a server is made of, in the order of ownership.

database          embedded or external, migrated, one login role for each part
  pools           requests, accounts, journal: each with its own role
    services      signals, supervision, journal, recovery, revocations, janitor
      listener    HTTP and WebSockets on one port
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import structlog
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from app.accounts.service import AccountService
from app.chat.dispatch import Dispatch
from app.chat.journal import Journal
from app.chat.runs import RunBounds, Runs
from app.database import open_store
from app.encryption import Renewal, certificates_of
from app.engine.engine import Catalog, built_in_agents, built_in_tools
from app.engine.modules import register_module
from app.janitor import Janitor
from app.tenancy import Tenancy
from app.web.application import make_application
from app.web.health import Vitals
from app.web.socket import SocketBounds, SocketEndpoint
from nurseries.budgets import Budget, BudgetLimits
from nurseries.events import Streams
from nurseries.isolation import Isolation
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database
from nurseries.request import Kernel
from nurseries.server import Server
from nurseries.serving import Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app.database import Store
    from app.settings import Settings
    from nurseries.server import Service

SERVICE_CONNECTIONS: Final = 4
logger = structlog.get_logger(__name__)


async def serve(settings: Settings, ready: Callable[[list[str], str | None], None]) -> None:
    """Run a server until it is told to stop.

    Args:
        settings: all of them.
        ready: called once, with the URLs and, for a new embedded database, the first user's sign-in code.

    Raises:
        StartupFailed: it could not start; the message says why.
    """
    catalog = make_catalog(settings)  # first, since a mistake in it is found without a database
    async with open_store(settings) as store, open_pools(settings, store) as pools:
        await _serve(settings, catalog, store, pools, ready)


def make_catalog(settings: Settings) -> Catalog:
    """Return the built-in agents and tools, and the agents of the settings' module.

    Raises:
        StartupFailed: the module, or an agent in it, cannot be used.
    """
    agents, tools = built_in_agents(load=settings.load_agent), built_in_tools()
    if settings.agents:
        register_module(settings.agents, agents, tools)
    return Catalog(agents=agents, tools=tools)


@attrs.frozen(eq=False)
class Pools:
    """The databases of the three parts."""

    kernel: Kernel
    streams: Streams
    journal: Journal
    accounts: Database
    log: Database


@asynccontextmanager
async def open_pools(settings: Settings, store: Store) -> AsyncIterator[Pools]:
    """Have connections, each part through its own role, for the body of the block."""
    pool = settings.pool
    limits = PoolLimits(
        size=pool.size,
        overflow=pool.overflow,
        per_user=pool.per_user,
        wait_seconds=pool.wait_seconds,
        waiters=pool.waiters,
        waiters_per_user=pool.waiters_per_user,
        recycle_seconds=pool.recycle_seconds,
    )
    # A service is one borrower, so its own limit is the whole of its small pool.
    service = PoolLimits(
        size=SERVICE_CONNECTIONS, overflow=0, per_user=SERVICE_CONNECTIONS, waiters_per_user=pool.waiters
    )
    access = store.access
    async with (
        open_pool(_with_limits(access.request, pool.statement_seconds), limits) as requests,
        open_pool(_with_limits(access.accounts, pool.statement_seconds), service) as accounts,
        open_pool(_with_limits(access.journal, pool.statement_seconds), service) as log,
    ):
        streams = Streams()
        log_database = Database(log, borrower="journal")
        journal = Journal(log_database, streams)
        budget = Budget(
            BudgetLimits(
                total=settings.runs.requests,
                per_user=settings.runs.requests_per_user,
                wait_seconds=pool.wait_seconds,
            ),
            name="requests",
        )
        kernel = Kernel(requests, journal, budget)
        yield Pools(kernel, streams, journal, Database(accounts, borrower="accounts"), log_database)


def _with_limits(conninfo: str, statement_seconds: float) -> str:
    """Let the database end what takes too long, whatever becomes of us."""
    options = conninfo_to_dict(conninfo).get("options") or ""
    milliseconds = int(statement_seconds * 1000)
    limits = f"-c statement_timeout={milliseconds} -c idle_in_transaction_session_timeout={milliseconds}"
    return make_conninfo(conninfo, options=f"{options} {limits}".strip())


async def _serve(
    settings: Settings,
    catalog: Catalog,
    store: Store,
    pools: Pools,
    ready: Callable[[list[str], str | None], None],
) -> None:
    kernel, streams, journal = pools.kernel, pools.streams, pools.journal
    server = Server(drain_seconds=settings.drain_seconds)
    isolation = Isolation()
    accounts = AccountService(pools.accounts, store.token_key, settings.accounts)
    runs = Runs(
        kernel,
        journal,
        catalog,
        RunBounds(
            message_characters=settings.runs.message_characters,
            queued_per_thread=settings.runs.queued_per_thread,
            running=settings.runs.running,
            running_per_user=settings.runs.running_per_user,
        ),
    )
    endpoint = SocketEndpoint(
        accounts,
        server,
        streams,
        Dispatch(kernel, runs, server),
        isolation,
        settings.serving,
        origins=settings.origins,
        bounds=SocketBounds(
            sockets_per_user=settings.sockets_per_user,
            outbox_events=settings.outbox_events,
            outbox_bytes=settings.outbox_bytes,
        ),
    )
    vitals = Vitals(
        service=accounts,
        server=server,
        kernel=kernel,
        journal=journal,
        runs=runs,
        streams=streams,
        isolation=isolation,
        metrics=settings.metrics,
    )
    certificates = certificates_of(settings)
    listener = Listener(
        http=make_application(accounts, kernel, runs, server, streams, catalog.agents, vitals),
        websocket=endpoint,
        host=settings.host,
        port=settings.port,
        unix_path=Path(settings.unix_path) if settings.unix_path else None,
        certificates=certificates,
        trusted_proxies=settings.trusted_proxies,
        limits=settings.serving,
    )
    vitals.listener = listener
    tenancy = Tenancy(store.access.journal)
    janitor = Janitor(
        accounts=accounts,
        accounts_database=pools.accounts,
        runs=runs,
        journal=journal,
        journal_database=pools.log,
        seconds=settings.janitor_seconds,
    )
    services: list[Service] = [server.stop_on_signals]
    if store.supervise is not None:
        services.append(store.supervise)
    listen = partial(accounts.listen_for_revocations, store.access.accounts)
    services += [tenancy.run, journal.run, janitor.recover_then_run, listen]
    if certificates is not None:
        services.append(Renewal(listener).run)
    code = await accounts.create_first_user() if store.supervise is not None else None
    await server.run(services, listener, runs, ready=lambda urls: ready(urls, code))
