"""`nurseries user add|disable|role`: what an administrator of the machine may do, also while the server runs."""

from __future__ import annotations

import getpass
import os
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path  # noqa: TC003  # cyclopts reads the annotations at run time
from typing import TYPE_CHECKING, Annotated, Final

import attrs
from cyclopts import App, Parameter

from app.accounts.service import AccountService
from app.audit.trail import open_trail
from app.database import DATABASE, open_store, prepare_store
from app.logs import configure_logging
from app.sources import load_settings
from nurseries.errors import NurseriesError
from nurseries.groups import leaves
from nurseries.postgres.embedded import running_conninfo
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from app.audit.event import Detail, SecurityEvent
    from app.database import Store
    from app.settings import Settings

user = App(name="user", help="Add users, disable them, give them roles; also while the server runs.")


@Parameter(name="*")
@attrs.frozen
class Place:
    """Where the accounts are, as for `nurseries serve`; its variables and its settings file count here too.

    Attributes:
        data_dir: Where the embedded database lives.
        database_url: The external database, if the server uses one.
        config: A TOML file with settings.
    """

    data_dir: Path | None = None
    database_url: str | None = None
    config: Path | None = None


DEFAULT_PLACE: Final = Place()


@user.command
async def add(
    email: str,
    *,
    password: str | None = None,
    role: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    place: Place = DEFAULT_PLACE,
) -> int:
    """Make an account, and print its user id.

    Args:
        email: The address.
        password: The password; asked for, or read from standard input, if it is not given.
        role: A role, such as admin. May be repeated.
        place: Where the accounts are.
    """
    if password is None:
        password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    with _refusals() as status:
        async with _accounts(place) as accounts:
            print(await accounts.users.add(email, password, role))
    return status[0]


@user.command
async def disable(email: str, *, place: Place = DEFAULT_PLACE) -> int:
    """Let a user do nothing more. Their sockets close at once.

    Args:
        email: The address.
        place: Where the accounts are.
    """
    with _refusals() as status:
        async with _accounts(place) as accounts:
            await accounts.users.disable(email)
            print(f"{email} is disabled")
    return status[0]


@user.command
async def role(email: str, *roles: str, place: Place = DEFAULT_PLACE) -> int:
    """Replace a user's roles; without any, the user has none.

    Args:
        email: The address.
        roles: The roles, such as admin.
        place: Where the accounts are.
    """
    with _refusals() as status:
        async with _accounts(place) as accounts:
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
        for error in leaves(group):
            print(f"nurseries: {error}", file=sys.stderr)


@asynccontextmanager
async def _accounts(place: Place) -> AsyncIterator[AccountService]:
    """Have the account service of the server's database, whether the server runs or not."""
    settings = load_settings({"data_dir": place.data_dir, "database_url": place.database_url}, place.config)
    configure_logging("warning")
    async with (
        _store(settings) as store,
        open_trail(store.access.audit, settings.audit) as trail,
        open_pool(store.access.accounts, PoolLimits(size=1, overflow=0, ready=1)) as pool,
    ):

        def audit(event: SecurityEvent) -> None:
            by: dict[str, Detail] = {"by": "command line", "uid": os.getuid()}
            trail.record(attrs.evolve(event, details={**event.details, **by}))

        database = Database(pool, borrower="accounts")
        yield AccountService(database, store.token_key, settings.accounts, audit=audit)


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store]:
    running = None if settings.database_url else running_conninfo(settings.data_dir / "postgres", DATABASE)
    if running is None:
        async with open_store(settings) as store:
            yield store
    else:
        yield await prepare_store(running)
