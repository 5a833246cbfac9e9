"""The wiring: everything that a server is made of, in the order of ownership.

database          embedded or external, migrated, one login role for each part
  pools           requests, accounts, journal, audit trail: each with its own role
    services      signals, supervision, audit trail, journal, recovery, revocations, janitor
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
from app.audit.event import finding, misdelivery
from app.audit.refusals import Refusals
from app.audit.trail import TRAIL_LIMITS, Trail
from app.chat.dispatch import Dispatch
from app.chat.journal import Journal
from app.chat.runs import Runs
from app.database import open_store
from app.encryption import Renewal, certificates_of
from app.engine.engine import Catalog, built_in_agents, built_in_tools
from app.engine.models.making import open_models
from app.engine.modules import register_module
from app.engine.request import RunLimits
from app.isolation import open_scopes, shared_by_design
from app.janitor import Janitor
from app.leaks import Leaks
from app.tenancy import Tenancy
from app.tools.analysis.workbench import Workbench
from app.tools.mcp.credentials import TokenVault
from app.tools.mcp.settings import check_servers
from app.tools.mcp.toolbox import Toolbox
from app.web.application import make_application
from app.web.files import FILES
from app.web.health import Vitals
from app.web.metrics import rss_bytes
from app.web.socket import SocketBounds, SocketEndpoint
from app.web.uploads import HEADER_BYTES
from nurseries.budgets import Budget, BudgetLimits
from nurseries.events import Streams
from nurseries.inspect import Audit, AuditBounds
from nurseries.isolation import Isolation
from nurseries.postgres.pool import Pool, PoolLimits, open_pool
from nurseries.postgres.scoped import Database
from nurseries.request import Kernel
from nurseries.server import Server
from nurseries.serving import BodyLimit, Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app.database import Store
    from app.engine.models.cascade import ModelCascade
    from app.settings import PoolSettings, Settings
    from nurseries.server import Service
    from nurseries.serving import Certificates

SERVICE_LIMITS: Final = PoolLimits(size=4, overflow=0, per_user=4)
"""A service is one borrower, so its own limit is the whole of its small pool."""

ANSWER_MARGIN_SECONDS: Final = 10.0
"""How long after its own limit for a statement the database may take to say so, before it counts as hung."""

logger = structlog.get_logger(__name__)


async def serve(
    settings: Settings,
    ready: Callable[[list[str], str | None], None],
    *,
    look: Callable[[Vitals], None] | None = None,
) -> None:
    """Run a server until it is told to stop.

    Args:
        settings: all of them.
        ready: called once, with the URLs and, for a new embedded database, the first user's sign-in code.
        look: called once before, with the parts that a server is looked at by.

    Raises:
        StartupFailed: it could not start; the message says why.
    """
    certificates = certificates_of(settings)  # first, as the catalog: mistakes are found without a database
    async with open_models(settings.all_models()) as models:
        catalog = make_catalog(settings, models)
        async with (
            open_store(settings, audit_days=settings.audit.keep_days) as store,
            open_pools(settings, store) as pools,
        ):
            toolbox = Toolbox(settings.mcp, TokenVault(store.vault_key))
            catalog = attrs.evolve(catalog, toolbox=toolbox)
            await _serve(settings, catalog, certificates, store, pools, ready, look)


def make_catalog(settings: Settings, models: ModelCascade) -> Catalog:
    """Return the built-in agents and tools, the agents of the settings' module, and the models.

    Raises:
        StartupFailed: the module, or an agent in it, cannot be used.
    """
    workbench = Workbench(settings.files)
    agents, tools = built_in_agents(load=settings.load_agent), built_in_tools(workbench)
    if settings.agents:
        register_module(settings.agents, agents, tools)
    check_servers(settings.mcp, frozenset(agent.name for agent in agents))
    limits = RunLimits(steps=settings.runs.steps, tokens=settings.runs.tokens)
    return Catalog(
        agents=agents,
        tools=tools,
        model=lambda: models,
        cascade=models,
        limits=limits,
        workbench=workbench,
    )


@attrs.frozen(eq=False)
class Pools:
    """The databases of the four parts.

    Attributes:
        needed: what every call leases from: to tell who asks, and to answer.
    """

    needed: tuple[Pool, ...]
    kernel: Kernel
    streams: Streams
    journal: Journal
    accounts: Database
    log: Database
    trail: Database


@asynccontextmanager
async def open_pools(settings: Settings, store: Store) -> AsyncIterator[Pools]:
    """Have connections, each part through its own role, for the body of the block."""
    pool = settings.pool
    answer_seconds = pool.statement_seconds + ANSWER_MARGIN_SECONDS
    limits = PoolLimits(
        size=pool.size,
        overflow=pool.overflow,
        per_user=pool.per_user,
        wait_seconds=pool.wait_seconds,
        waiters=pool.waiters,
        waiters_per_user=pool.waiters_per_user,
        recycle_seconds=pool.recycle_seconds,
        answer_seconds=answer_seconds,
    )
    service = attrs.evolve(SERVICE_LIMITS, waiters_per_user=pool.waiters, answer_seconds=answer_seconds)
    trail_limits = attrs.evolve(TRAIL_LIMITS, answer_seconds=answer_seconds)
    access = store.access
    async with (
        open_pool(_with_limits(access.request, pool), limits) as requests,
        open_pool(_with_limits(access.accounts, pool), service) as accounts,
        open_pool(_with_limits(access.journal, pool), service) as log,
        open_pool(_with_limits(access.audit, pool), trail_limits) as trail,
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
        yield Pools(
            (accounts, requests),
            kernel,
            streams,
            journal,
            Database(accounts, borrower="accounts"),
            log_database,
            Database(trail, borrower="audit"),
        )


def _with_limits(conninfo: str, pool: PoolSettings) -> str:
    """Let the database end what takes too long, whatever becomes of us."""
    options = conninfo_to_dict(conninfo).get("options") or ""
    milliseconds = int(pool.statement_seconds * 1000)
    limits = (
        f"-c statement_timeout={milliseconds} -c idle_in_transaction_session_timeout={milliseconds}"
        f" -c lock_timeout={int(pool.lock_seconds * 1000)}"
    )
    return make_conninfo(conninfo, options=f"{options} {limits}".strip())


async def _serve(  # noqa: PLR0913  # called once
    settings: Settings,
    catalog: Catalog,
    certificates: Certificates | None,
    store: Store,
    pools: Pools,
    ready: Callable[[list[str], str | None], None],
    look: Callable[[Vitals], None] | None,
) -> None:
    kernel, streams, journal = pools.kernel, pools.streams, pools.journal
    server = Server(drain_seconds=settings.drain_seconds)
    trail = Trail(pools.trail, settings.audit)
    refusals = Refusals(trail)
    isolation = Isolation(
        on_misdelivery=lambda session_id, event: trail.record(misdelivery(session_id, event)),
        on_finding=lambda found: trail.record(finding(found)),
    )
    accounts = AccountService(pools.accounts, store.token_key, settings.accounts, audit=trail.record)
    runs = Runs(kernel, journal, catalog, settings.runs, on_failure=refusals.failed)
    endpoint = SocketEndpoint(
        accounts,
        server,
        streams,
        Dispatch(kernel, runs, server, refusals, trail.record),
        isolation,
        refusals,
        catalog.toolbox,
        settings.serving,
        origins=settings.origins,
        bounds=SocketBounds(
            sockets_per_user=settings.sockets_per_user,
            outbox_events=settings.outbox_events,
            outbox_bytes=settings.outbox_bytes,
        ),
    )
    audit = Audit(
        partial(open_scopes, kernel, server.sessions, streams, runs),
        lambda: shared_by_design(server.requests, catalog),  # a nursery that is not open yet
        isolation,
        AuditBounds(objects=settings.isolation.objects, seconds=settings.isolation.seconds),
    )
    leaks = Leaks(kernel, server, streams, runs, rss_bytes)
    vitals = Vitals(
        pools=pools.needed,
        service=accounts,
        server=server,
        kernel=kernel,
        journal=journal,
        runs=runs,
        streams=streams,
        isolation=isolation,
        audit=audit,
        leaks=leaks,
        trail=trail,
        models=catalog.cascade.statistics,
        metrics=settings.metrics,
    )
    listener = Listener(
        http=make_application(accounts, kernel, runs, server, streams, catalog, vitals, refusals),
        websocket=endpoint,
        host=settings.host,
        port=settings.port,
        unix_path=Path(settings.unix_path) if settings.unix_path else None,
        certificates=certificates,
        trusted_proxies=settings.trusted_proxies,
        limits=settings.serving,
        bodies={FILES: BodyLimit(settings.files.bytes + HEADER_BYTES, settings.files.upload_seconds)},
        on_limit=refusals.limited,
    )
    vitals.listener = listener
    if look is not None:
        look(vitals)
    tenancy = Tenancy(store.access.journal)
    janitor = Janitor(
        accounts=accounts,
        accounts_database=pools.accounts,
        trail=trail,
        runs=runs,
        journal=journal,
        journal_database=pools.log,
        leaks=leaks,
        seconds=settings.janitor_seconds,
    )
    services: list[Service] = [server.stop_on_signals]
    if store.supervise is not None:
        services.append(store.supervise)
    listen = partial(accounts.listen_for_revocations, store.access.accounts)
    # The trail ends after all that tell it.
    services += [trail.run, tenancy.run, journal.run, janitor.recover_then_run, listen]
    services.append(partial(audit.run, settings.isolation.every_seconds))
    if certificates is not None:
        services.append(Renewal(listener).run)
    code = await accounts.codes.for_first_user() if store.supervise is not None else None

    def go_on(urls: list[str]) -> None:
        runs.go_on(server.requests)
        ready(urls, code)

    await server.run(services, listener, runs, ready=go_on)
