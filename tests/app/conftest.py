"""What tests stand on: a kernel to make requests in, and the account service, over a real database."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import attrs
import psycopg
import pytest

from app.accounts.identity import Identity
from app.accounts.service import AccountService
from app.accounts.settings import AccountSettings, HashCost
from app.accounts.tokens import TokenPair
from app.audit.event import LOGGED, SecurityEvent
from nurseries.budgets import Budget, BudgetLimits
from nurseries.context import UserContext
from nurseries.events import MemoryLog, Streams
from nurseries.ids import new_id
from nurseries.postgres.pool import Pool, PoolLimits, open_pool
from nurseries.postgres.scoped import Database
from nurseries.request import Kernel, Request, open_request
from tests.fixtures.aimock import Aimock, fresh, running_aimock

PASSWORD = "correct horse battery"
ADDRESS = "192.0.2.1"
KEY = bytes(range(32))

Heard = Callable[[], list[tuple[str, dict]]]


@attrs.frozen
class House:
    """A kernel without durable log, and the rows that chat would have written.

    Attributes:
        owner: a connection that sees all rows.
        pool: what requests lease from.
        streams: where their events arrive.
    """

    owner: psycopg.Connection
    pool: Pool
    streams: Streams
    kernel: Kernel

    def user(self) -> str:
        """Add a user and return the id."""
        user_id = new_id()
        self.owner.execute(
            "INSERT INTO users (user_id, email, email_key, password_hash) VALUES (%s, %s, %s, '')",
            (user_id, f"{user_id}@example.org", f"{user_id}@example.org"),
        )
        return user_id

    def thread(self, user_id: str) -> str:
        """Add a thread and return its id."""
        thread_id = new_id()
        self.owner.execute("INSERT INTO threads (thread_id, user_id) VALUES (%s, %s)", (thread_id, user_id))
        return thread_id

    def context(self, user_id: str | None = None, thread_id: str | None = None) -> UserContext:
        """Return the context of a new run, of a new user in a new thread unless told otherwise."""
        user_id = user_id or self.user()
        return UserContext(user_id=user_id, thread_id=thread_id or self.thread(user_id), run_id=new_id())

    def message(self, context: UserContext, role: str, content: str) -> str:
        """Add a message of the context's run and return its id."""
        message_id = new_id()
        self.owner.execute(
            "INSERT INTO messages (message_id, thread_id, user_id, run_id, role, content)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (message_id, context.thread_id, context.user_id, context.run_id, role, content),
        )
        return message_id

    @asynccontextmanager
    async def request(self, context: UserContext | None = None) -> AsyncIterator[tuple[Request, Heard]]:
        """Open a request, with a function that returns the types and payloads of its events so far."""
        context = context or self.context()
        events: list[tuple[str, dict]] = []
        with self.streams.listen(context.user_id, events=100_000) as outbox:

            def heard() -> list[tuple[str, dict]]:
                for event in outbox.take_nowait():
                    envelope = json.loads(event.data)
                    events.append((envelope["type"], envelope["payload"]))
                return list(events)

            async with open_request(self.kernel, context) as request:
                yield request, heard


@pytest.fixture
async def house(database) -> AsyncIterator[House]:
    """The kernel over this test's own database."""
    streams = Streams()
    with psycopg.connect(database.owner, autocommit=True) as owner:
        async with open_pool(database.request) as pool:
            yield House(owner, pool, streams, Kernel(pool, MemoryLog(streams), Budget(BudgetLimits())))


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

    @property
    def alarms(self) -> list[SecurityEvent]:
        """The security events that an honest client does not cause."""
        return [event for event in self.audited if event.kind in LOGGED]

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


@pytest.fixture(scope="session")
def aimock_url(tmp_path_factory) -> Iterator[str]:
    """One server of models for the whole run."""
    with running_aimock(tmp_path_factory.mktemp("aimock")) as url:
        yield url


@pytest.fixture
async def aimock(aimock_url) -> AsyncIterator[Aimock]:
    """That server, without any memory of earlier tests."""
    async with fresh(aimock_url) as aimock:
        yield aimock
