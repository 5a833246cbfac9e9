"""A migrated database for one test: the migrations run once, and are copied from then on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from app.store.migrate import migrate
from app.store.owner import open_owner
from app.store.roles import StoreAccess, ensure_login_roles, login_role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nurseries.testing.cluster import Cluster

TEMPLATE: Final = "nurseries_template"


@attrs.frozen
class Database:
    """A migrated database, empty of rows, with a connection string for each role.

    Attributes:
        owner: of its owner, whom row-level security does not hold back.
        access: of the login roles that a server's parts use.
    """

    owner: str = attrs.field(repr=False)
    access: StoreAccess

    @property
    def request(self) -> str:
        """Of the role that requests use."""
        return self.access.request

    @property
    def accounts(self) -> str:
        """Of the role of the account service."""
        return self.access.accounts

    @property
    def journal(self) -> str:
        """Of the role of the event log."""
        return self.access.journal

    @property
    def audit(self) -> str:
        """Of the role of the audit trail."""
        return self.access.audit


def make_template(cluster: Cluster) -> str:
    """Make a migrated database that others are copied from; returns its name."""
    trio.run(_migrate, cluster.create(TEMPLATE))
    return TEMPLATE


@contextmanager
def migrated_database(cluster: Cluster, template: str) -> Iterator[Database]:
    """Lend a copy of `template` with login roles of its own."""
    name = ""
    try:
        with cluster.database(template) as owner:
            name = str(conninfo_to_dict(owner)["dbname"])
            yield Database(owner, trio.run(_ensure_login_roles, owner))
    finally:
        for part in attrs.fields(StoreAccess):  # roles belong to the cluster, and outlive their database
            cluster.admin.execute(
                SQL("DROP ROLE IF EXISTS {}").format(Identifier(login_role(name, part.name)))
            )


async def _migrate(owner: str) -> None:
    async with open_owner(owner) as connection:
        await migrate(connection)


async def _ensure_login_roles(owner: str) -> StoreAccess:
    async with open_owner(owner) as connection:
        return await ensure_login_roles(connection)
