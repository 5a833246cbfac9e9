"""The database of a server: embedded or external, migrated, with a login role for each part.

`app.main` serves from it. `nurseries user` works on it without knowing how a server is wired.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs

from app.accounts.tokens import load_or_create_key
from app.store.migrate import migrate
from app.store.owner import open_owner
from app.store.roles import StoreAccess, ensure_login_roles
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
    """A database that is ready: how to log in, the key that signs tokens, and what keeps an embedded one running."""

    access: StoreAccess
    token_key: bytes = attrs.field(repr=False)
    supervise: Service | None


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Have a migrated database for the body of the block."""
    url = settings.database_url
    if url:
        yield await prepare_store(url)
        return
    connections = settings.pool.size + settings.pool.overflow + SPARE_CONNECTIONS
    options = {"max_connections": str(max(100, connections))}
    async with open_embedded(settings.data_dir / "postgres", settings=options) as postgres:
        async with open_owner(postgres.conninfo()) as owner:
            found = await owner.fetch("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE)
            if not found:
                await owner.run(f"CREATE DATABASE {DATABASE}")

        async def supervise(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await postgres.supervise()

        yield await prepare_store(postgres.conninfo(DATABASE), supervise)


async def prepare_store(conninfo: str, supervise: Service | None = None) -> Store:
    """Migrate the owner's database at `conninfo` and return how to use it."""
    async with open_owner(conninfo) as owner:
        await migrate(owner)
        return Store(await ensure_login_roles(owner), await load_or_create_key(owner), supervise)
