"""`nurseries user add|disable|role`: what an administrator of the machine may do, also while the server runs."""

from __future__ import annotations

import getpass
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path  # noqa: TC003  # cyclopts reads the annotations at run time
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from app.accounts.service import AccountService
from app.main import DATABASE, open_store, prepare_store
from app.settings import load_settings
from nurseries.errors import NurseriesError
from nurseries.postgres.embedded import running_conninfo
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from app.main import Store
    from app.settings import Settings

user = App(name="user", help="Add users, disable them, give them roles.")

DataDir = Annotated[Path | None, Parameter(help="Where the embedded database lives.")]
DatabaseUrl = Annotated[str | None, Parameter(help="The external database, if the server uses one.")]


@user.command
async def add(
    email: str,
    *,
    password: str | None = None,
    role: tuple[str, ...] = (),
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> int:
    """Make an account, and print its user id.

    Args:
        email: The address.
        password: The password; asked for, or read from standard input, if it is not given.
        role: A role, such as admin. May be repeated.
    """
    if password is None:
        password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    with _refusals() as status:
        async with _accounts(data_dir, database_url) as accounts:
            print(await accounts.users.add(email, password, role))
    return status[0]


@user.command
async def disable(email: str, *, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> int:
    """Let a user do nothing more. Their sockets close at once.

    Args:
        email: The address.
    """
    with _refusals() as status:
        async with _accounts(data_dir, database_url) as accounts:
            await accounts.users.disable(email)
            print(f"{email} is disabled")
    return status[0]


@user.command
async def role(email: str, *roles: str, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> int:
    """Replace a user's roles; without any, the user has none.

    Args:
        email: The address.
        roles: The roles, such as admin.
    """
    with _refusals() as status:
        async with _accounts(data_dir, database_url) as accounts:
            await accounts.users.set_roles(email, roles)
            print(f"{email}: {', '.join(roles) or 'no roles'}")
    return status[0]


@contextmanager
def _refusals() -> Iterator[list[int]]:
    """Turn a refusal into a line on standard error and the exit status 1."""
    status = [0]
    try:
        yield status
    except* NurseriesError as group:
        status[0] = 1
        for error in group.exceptions:
            print(f"nurseries: {error}", file=sys.stderr)


@asynccontextmanager
async def _accounts(data_dir: Path | None, database_url: str | None) -> AsyncIterator[AccountService]:
    """Have the account service of the server's database, whether the server runs or not."""
    given = {"data_dir": data_dir, "database_url": database_url}
    settings = load_settings({name: value for name, value in given.items() if value is not None})
    async with _store(settings) as store:
        async with open_pool(store.access.accounts, PoolLimits(size=1, overflow=0, ready=1)) as pool:
            yield AccountService(Database(pool, borrower="accounts"), store.token_key, settings.accounts)


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store]:
    running = running_conninfo(settings.data_dir / "postgres", DATABASE)
    if running is None or settings.database_url:
        async with open_store(settings) as store:
            yield store
    else:
        yield await prepare_store(running)
