"""The database of a server: embedded or external, migrated, with a login role for each part.

`app.main` serves from it. `nurseries user` works on it without knowing how a server is wired.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs

from app.accounts.tokens import load_or_create_key
from app.store.audit import keep_for
from app.store.migrate import migrate
from app.store.owner import open_owner
from app.store.roles import StoreAccess, ensure_login_roles
from app.store.secrets import load_or_create
from app.tools.mcp.credentials import KEY_BYTES
from nurseries.postgres.embedded import open_embedded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio

    from app.settings import Settings
    from nurseries.server import Service

DATABASE: Final = "nurseries"
"""The name of the database in an embedded PostgreSQL."""

SPARE_CONNECTIONS: Final = 30
"""What an embedded PostgreSQL takes besides the requests: services, administrators, and its own reserve."""


@attrs.frozen(eq=False)
class Store:
    """A database that is ready: how to log in, the server's keys, and what keeps an embedded one running.

    Attributes:
        access: how to log in.
        token_key: signs access tokens.
        vault_key: seals the tokens that users store for their tools' servers.
        supervise: keeps an embedded database running.
    """

    access: StoreAccess
    token_key: bytes = attrs.field(repr=False)
    vault_key: bytes = attrs.field(repr=False)
    supervise: Service | None


@asynccontextmanager
async def open_store(settings: Settings, *, audit_days: float | None = None) -> AsyncIterator[Store]:
    """Have a migrated database for the body of the block.

    Args:
        settings: say where it is.
        audit_days: for how long its audit trail is kept from now on; None leaves that as it is.
    """
    url = settings.database_url
    if url:
        yield await prepare_store(url, audit_days=audit_days)
        return
    connections = settings.pool.size + settings.pool.overflow + SPARE_CONNECTIONS
    options = {"max_connections": str(max(100, connections))}
    data_dir = settings.data_dir
    async with open_embedded(data_dir / "postgres", within=data_dir, settings=options) as postgres:
        async with open_owner(postgres.conninfo()) as owner:
            found = await owner.fetch("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE)
            if not found:
                await owner.run(f"CREATE DATABASE {DATABASE}")

        async def supervise(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await postgres.supervise()

        yield await prepare_store(postgres.conninfo(DATABASE), supervise, audit_days=audit_days)


async def prepare_store(
    conninfo: str, supervise: Service | None = None, *, audit_days: float | None = None
) -> Store:
    """Migrate the owner's database at `conninfo` and return how to use it; arguments as for `open_store`."""
    async with open_owner(conninfo) as owner:
        await migrate(owner)
        if audit_days is not None:
            await keep_for(owner, audit_days)
        return Store(
            access=await ensure_login_roles(owner),
            token_key=await load_or_create_key(owner),
            vault_key=await load_or_create(owner, "vault_key", os.urandom(KEY_BYTES)),
            supervise=supervise,
        )
