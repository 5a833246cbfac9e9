"""A house to make requests in: the kernel over a real database, with users to act for."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import psycopg
import pytest

from nurseries.budgets import Budget, BudgetLimits
from nurseries.context import UserContext
from nurseries.events import MemoryLog, Streams
from nurseries.ids import new_id
from nurseries.postgres.pool import Pool, open_pool
from nurseries.request import Kernel, Request, open_request

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
