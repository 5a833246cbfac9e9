"""Lives of a server's runs over one database: one after the other, each until it is ended or dies."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from app.chat.calls import open_call
from app.chat.journal import Journal
from app.chat.recovery import Recovered, recover_runs
from app.chat.run import Ask
from app.chat.runs import Runs
from app.chat.settings import RunSettings
from app.engine.agent import Agent
from app.engine.engine import Catalog
from app.engine.model import TextPiece, ToolTurn, Usage
from app.engine.registry import AgentRegistry
from app.engine.request import RunLimits
from app.tools.registry import ToolRegistry
from nurseries.budgets import Budget, BudgetLimits
from nurseries.events import Streams
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database
from nurseries.request import Kernel
from tests.fixtures.pieces import Pieces


class Killed(Exception):
    """What a server that has been killed would have done."""


class MortalDatabase(Database):
    """The journal's database; after so many commits nothing more is committed, as if the server had been killed."""

    def __init__(self, pool, commits):
        super().__init__(pool, borrower="journal")
        self.commits = commits

    async def batch(self, statements):
        if self.commits == 0:
            raise Killed
        self.commits -= 1
        return await super().batch(statements)


class StepModel:
    """Says what a test wrote for each step. It has no state: how far it is, it knows from the conversation."""

    def __init__(self, *steps):
        self.steps = steps
        self.told = []

    @asynccontextmanager
    async def stream(self, conversation):
        self.told.append(conversation)
        await trio.lowlevel.checkpoint()
        step = sum(isinstance(turn, ToolTurn) for turn in conversation.turns)
        yield Pieces([*self.steps[step], Usage(10, 1, "scripted")])


@attrs.frozen
class Life:
    """One server's runs.

    Attributes:
        recovered: what it found.
    """

    kernel: Kernel
    journal: Journal
    database: MortalDatabase
    streams: Streams
    runs: Runs
    recovered: Recovered
    nursery: trio.Nursery
    house: object

    async def logged(self, user_id, thread_id, event_type, count=1):
        """Return when the thread's log has so many events of this type."""
        with self.streams.listen(user_id) as outbox, trio.fail_after(20):
            while read_log(self.house, thread_id).types.count(event_type) < count:
                await outbox.take()

    async def ended(self):
        """Return when every run has ended, those too that a drain would not wait for."""
        for run in self.runs:
            await run.done.wait()

    async def submit(self, user_id, thread_id, content="hello", *, owner=None, **fields):
        ask = Ask(thread_id=thread_id, content=content, **{"agent": "worker", **fields})
        async with open_call(self.kernel, user_id, thread_id=thread_id) as call:
            return await self.runs.submit(call, ask, owner or self.nursery)


def worker(*, resumable=True, tools=(), **fields):
    """Return an agent that is a model and tools."""
    named = {
        "name": "worker",
        "description": "Works.",
        "system": "Work.",
        "tools": tools,
        "resumable": resumable,
    }
    return type("Worker", (Agent,), named | fields)


@asynccontextmanager
async def living(
    house, database, model, *, tools=(), agents=None, bounds=None, limits=None, commits=-1
) -> AsyncIterator[Life]:
    """Run a server's runs for the body of the block. What it does not commit in `commits` batches is lost."""
    agents = agents or [worker(tools=tuple(tool.name for tool in tools))]
    catalog = Catalog(
        agents=AgentRegistry(agents),
        tools=ToolRegistry(tools),
        model=lambda: model,
        limits=limits or RunLimits(),
    )
    async with open_pool(database.journal, PoolLimits(size=2, overflow=0, per_user=2)) as pool:
        mortal = MortalDatabase(pool, commits)
        streams = Streams()
        journal = Journal(mortal, streams)
        kernel = Kernel(house.pool, journal, Budget(BudgetLimits(total=500, per_user=100)))
        runs = Runs(kernel, journal, catalog, bounds or RunSettings())
        async with trio.open_nursery() as services:
            await services.start(journal.run)
            recovered = await recover_runs(runs, journal, mortal)
            async with trio.open_nursery() as owner:
                runs.go_on(owner)
                yield Life(kernel, journal, mortal, streams, runs, recovered, owner, house)
                owner.cancel_scope.cancel()
            services.cancel_scope.cancel()


@attrs.frozen
class Log:
    """One thread's event log, as its owner reads it."""

    events: list[dict]

    def of(self, *types):
        return [event["payload"] for event in self.events if event["type"] in types]

    @property
    def types(self):
        return [event["type"] for event in self.events]

    def shown(self):
        """Return the answer as a client shows it that follows the protocol."""
        text = ""
        for event in self.events:
            if event["type"] == "message_delta":
                text += event["payload"]["text"]
            elif event["type"] == "run_resumed":
                text = event["payload"]["output"]
        return text


def read_log(house, thread_id):
    """Return the log, which must be numbered without a gap."""
    rows = house.owner.execute(
        "SELECT lines FROM events WHERE thread_id = %s ORDER BY first_seq", (thread_id,)
    ).fetchall()
    events = [json.loads(line) for (lines,) in rows for line in lines.split("\n")]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    return Log(events)


def text(*words):
    return [TextPiece(word) for word in words]
