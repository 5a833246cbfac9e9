"""Bring the schema of a database to that of this release.

A migration is a file `migrations/NNNN_name.sql`. It is applied once, whole, in the order of the names, and is
never changed afterwards: what was applied is recorded with its SHA-256.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING

import attrs
import structlog

from nurseries.errors import NurseriesError, StartupFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.store.owner import Owner

logger = structlog.get_logger(__name__)


@attrs.frozen
class Migration:
    """One step of the schema."""

    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """What tells whether the file is the one that was applied."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load_migrations() -> list[Migration]:
    """Return the migrations of this release, first to last."""
    found = [
        file for file in files("app.store").joinpath("migrations").iterdir() if file.name.endswith(".sql")
    ]
    return [
        Migration(file.name, file.read_text("utf-8")) for file in sorted(found, key=lambda file: file.name)
    ]


async def migrate(owner: Owner, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Apply what is missing, and return its names.

    Args:
        owner: holds the lock that keeps a second server from doing the same.
        migrations: the steps of this release, if not those of its files.

    Raises:
        StartupFailed: the database has another history than this release, or refuses a step.
    """
    if migrations is None:
        migrations = load_migrations()
    await _require_createrole(owner)
    await owner.run(
        "CREATE TABLE IF NOT EXISTS schema_migrations ("
        " name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    applied: dict[str, str] = dict(sorted(await owner.fetch("SELECT name, sha256 FROM schema_migrations")))
    _require_same_history(applied, migrations)
    missing = migrations[len(applied) :]
    for migration in missing:
        try:
            await owner.run(
                f"{migration.sql}\n;INSERT INTO schema_migrations (name, sha256)"
                f" VALUES ('{migration.name}', '{migration.sha256}')"
            )
        except NurseriesError as error:
            raise StartupFailed(f"the migration {migration.name} failed: {error}") from error
        logger.info("applied a migration", migration=migration.name)
    return [migration.name for migration in missing]


def _require_same_history(applied: dict[str, str], migrations: Sequence[Migration]) -> None:
    known = {migration.name: migration.sha256 for migration in migrations}
    if newer := sorted(applied.keys() - known.keys()):
        raise StartupFailed(
            f"the database is newer than this server: it has the migration {newer[-1]};"
            " upgrade the server, or restore a backup made before the migration"
        )
    for name, sha256 in applied.items():
        if known[name] != sha256:
            raise StartupFailed(
                f"the migration {name} was changed after the database had applied it;"
                " restore the file, and put the change into a new migration"
            )
    if list(applied) != list(known)[: len(applied)]:
        raise StartupFailed(
            f"this server has a migration that belongs before {max(applied)}, which the database has already;"
            " give it a later number"
        )


async def _require_createrole(owner: Owner) -> None:
    [(name, may)] = await owner.fetch(
        "SELECT rolname, rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
    )
    if not may:
        raise StartupFailed(
            f"the database user {name!r} may not create the roles that keep users apart;"
            f' as an administrator of the database run: ALTER ROLE "{name}" CREATEROLE'
        )
