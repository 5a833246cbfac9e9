"""What the server must remember between its starts. Only the owner of the database can read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.store.owner import Owner


async def load_or_create(owner: Owner, name: str, fresh: bytes) -> bytes:
    """Return the secret `name`, which is `fresh` if there was none: of two servers that start at once, one wins."""
    await owner.fetch(
        "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING", name, fresh
    )
    ((value,),) = await owner.fetch("SELECT value FROM secrets WHERE name = $1", name)
    return bytes(value)
