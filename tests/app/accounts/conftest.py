"""The account service over a real database, with a clock that the test turns."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import attrs
import psycopg
import pytest

from app.accounts.audit import SecurityEvent
from app.accounts.identity import Identity
from app.accounts.service import AccountService
from app.accounts.settings import AccountSettings, HashCost
from app.accounts.tokens import TokenPair
from nurseries.postgres.pool import Pool, PoolLimits, open_pool
from nurseries.postgres.scoped import Database

PASSWORD = "correct horse battery"
ADDRESS = "192.0.2.1"
KEY = bytes(range(32))


@attrs.define
class Clock:
    """A wall clock. It begins far from the real one, so that nothing that reads the real one goes unseen."""

    time: datetime = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@attrs.define
class Accounts:
    """The service with what a test wants to know of it.

    Attributes:
        service: under test.
        clock: the service's.
        audited: the security events so far.
        owner: a connection that sees all rows.
        pool: of the accounts role.
    """

    service: AccountService
    clock: Clock
    audited: list[SecurityEvent]
    owner: psycopg.Connection
    pool: Pool
    make: Callable[..., AccountService]

    async def login(self, email: str = "ann@example.org", *, registered: bool = False) -> TokenPair:
        """Log in, as a new user unless told that there is one."""
        if not registered:
            await self.service.register(email, PASSWORD)
        return await self.service.login(email, PASSWORD, address=ADDRESS)

    async def identity(self, email: str = "ann@example.org", *, registered: bool = False) -> Identity:
        """Log in and return whom the access token stands for."""
        pair = await self.login(email, registered=registered)
        return await self.service.authenticate_bearer(pair.access_token)

    def value(self, sql: str, *params: object) -> object:
        """Return what one SELECT of one value gives."""
        return self.owner.execute(sql, params or None).fetchone()[0]


@pytest.fixture
async def accounts(database) -> AsyncIterator[Accounts]:
    """The account service of this test's own database; `make(**settings)` gives another one over the same."""
    clock, audited = Clock(), []
    limits = PoolLimits(size=10, overflow=0, per_user=10)
    with psycopg.connect(database.owner, autocommit=True) as owner:
        async with open_pool(database.accounts, limits) as pool:

            def make(**settings: object) -> AccountService:
                return AccountService(
                    Database(pool, borrower="accounts"),
                    KEY,
                    AccountSettings(hash_cost=HashCost(8, 1, 1), **settings),
                    audit=audited.append,
                    now=clock,
                )

            yield Accounts(make(), clock, audited, owner, pool, make)
