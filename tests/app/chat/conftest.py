"""The runs of a server without its sockets: real database, real journal, agents that tests control."""

import json
from collections.abc import AsyncIterator

import attrs
import pytest
import trio

import app.chat.journal
from app.chat.acceptance import Accepted
from app.chat.calls import open_call
from app.chat.journal import Journal
from app.chat.run import Ask
from app.chat.runs import Runs
from app.chat.settings import RunSettings
from app.engine.agent import Agent
from app.engine.assistant import Assistant
from app.engine.engine import Catalog, built_in_tools
from app.engine.load import Load
from app.engine.registry import AgentRegistry
from app.engine.request import Answer
from nurseries.budgets import Budget, BudgetLimits
from nurseries.events import Streams
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database
from nurseries.request import Kernel


class Patient(Agent):
    """Says one word, then waits until it is cancelled."""

    name = "patient"
    description = "Waits."

    async def run(self, request):
        await request.say("begun ")
        await trio.sleep_forever()


class Broken(Agent):
    """Says one word, then fails in a way that nobody expects."""

    name = "broken"
    description = "Fails."

    async def run(self, request):
        await request.say("half ")
        raise ZeroDivisionError("a secret of the server")


class Exiting(Agent):
    """Tries to end the process."""

    name = "exiting"
    description = "Exits."

    async def run(self, request):
        raise SystemExit(3)


class Echo(Agent):
    """Says what it was told."""

    name = "echo"
    description = "Echoes."

    async def run(self, request):
        await request.say(request.content)
        return Answer(request.content, {"words": len(request.content.split())})


@attrs.frozen
class Chat:
    """Everything below the sockets, for any number of users."""

    house: object
    kernel: Kernel
    journal: Journal
    journal_database: Database
    streams: Streams
    runs: Runs
    nursery: trio.Nursery

    async def submit(self, user_id: str, thread_id: str, content: str = "hello", **fields) -> Accepted:
        ask = Ask(thread_id=thread_id, content=content, **{"agent": "echo", **fields})
        async with open_call(self.kernel, user_id, thread_id=thread_id) as call:
            return await self.runs.submit(call, ask, self.nursery)

    def envelopes(self, thread_id: str) -> list[dict]:
        """Return the thread's event log, as its owner reads it."""
        rows = self.house.owner.execute(
            "SELECT lines FROM events WHERE thread_id = %s ORDER BY first_seq", (thread_id,)
        ).fetchall()
        return [json.loads(line) for (lines,) in rows for line in lines.split("\n")]

    def types(self, thread_id: str) -> list[str]:
        return [envelope["type"] for envelope in self.envelopes(thread_id)]

    def messages(self, thread_id: str) -> list[tuple]:
        return self.house.owner.execute(
            "SELECT role, content, partial FROM messages WHERE thread_id = %s ORDER BY position", (thread_id,)
        ).fetchall()

    def status(self, run_id: str) -> str:
        return self.house.owner.execute("SELECT status FROM runs WHERE run_id = %s", (run_id,)).fetchone()[0]


@pytest.fixture
async def chat(house, database, nursery) -> AsyncIterator[Chat]:
    """A journal that commits, and runs that can be submitted."""
    async with open_pool(database.journal, PoolLimits(size=2, overflow=0, per_user=2)) as pool:
        streams = Streams()
        journal_database = Database(pool, borrower="journal")
        journal = Journal(journal_database, streams)
        kernel = Kernel(house.pool, journal, Budget(BudgetLimits(total=200, per_user=100)))
        agents = AgentRegistry([Patient, Broken, Exiting, Echo, Assistant, Load])
        runs = Runs(kernel, journal, Catalog(agents=agents, tools=built_in_tools()), RunSettings())
        await nursery.start(journal.run)
        async with trio.open_nursery() as owner:  # inside the journal's, which the last events still need
            yield Chat(house, kernel, journal, journal_database, streams, runs, owner)
            owner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


@pytest.fixture
def user(house):
    """Somebody."""
    return house.user()


@pytest.fixture
def thread(house, user):
    """A conversation of theirs."""
    return house.thread(user)


@pytest.fixture
def one_by_one(monkeypatch):
    """Let each commit hold one event or one checkpoint, so that a kill can come between almost any two."""
    monkeypatch.setattr(app.chat.journal, "BATCH_EVENTS", 1)
    monkeypatch.setattr(app.chat.journal, "PACE_SECONDS", 0)
    monkeypatch.setattr(app.chat.journal, "LINGER_SECONDS", 0)
