"""The tokens that a user stored for the servers of their tools. What is stored is sealed; see `app.tools.mcp`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nurseries.postgres.scoped import ScopedDatabase


async def put(database: ScopedDatabase, server: str, sealed: bytes) -> None:
    """Store the user's sealed token for a server, in place of one that was there."""
    await database.execute(
        "INSERT INTO tool_credentials (user_id, server, sealed) VALUES (app_user_id(), $1, $2)"
        " ON CONFLICT (user_id, server) DO UPDATE SET sealed = excluded.sealed, created_at = now()",
        server,
        sealed,
    )


async def get(database: ScopedDatabase, server: str) -> bytes | None:
    """Return the user's sealed token for a server, if there is one."""
    row = await database.fetch_one("SELECT sealed FROM tool_credentials WHERE server = $1", server)
    return bytes(row[0]) if row is not None else None


async def servers(database: ScopedDatabase) -> frozenset[str]:
    """Return the servers that the user stored a token for."""
    return frozenset(row[0] for row in await database.fetch("SELECT server FROM tool_credentials"))


async def delete(database: ScopedDatabase, server: str) -> bool:
    """Remove the user's token for a server; False where there was none."""
    return await database.execute("DELETE FROM tool_credentials WHERE server = $1", server) > 0
