"""What the engine costs without its model: CPU of one step, in milliseconds.

    python -m tests.bench.engine [--rounds N] [--limit MILLISECONDS] [--profile]

A step is: the model is asked, asks for a tool, the tool is called, its result goes back. The model answers at once
from memory, so that what is measured is ours: the loop, the dispatcher, four events, and whatever keeps them. The
cost of a run without steps (its request, its history, its beginning and its end) is measured beside it and taken
off. Two houses take turns:

- `engine`: the loop and the tools, with events that are numbered in memory;
- `server`: a resumable run as a server runs it: every event, checkpoint and call is committed to PostgreSQL, for
  twenty users together or, which is dearer, for one alone.

`--limit` makes the command fail where a median is above it.
"""

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from contextlib import asynccontextmanager
from functools import partial

import psycopg
import trio

from app.agents import Agent
from app.chat.calls import open_call
from app.chat.journal import Journal
from app.chat.run import Ask
from app.chat.runs import Runs
from app.chat.settings import RunSettings
from app.engine.engine import Catalog, built_in_agents, built_in_tools, run_agent
from app.engine.model import TextPiece, ToolCall, ToolTurn, Usage
from app.engine.request import RunLimits
from app.logs import configure_logging
from app.testing.database import make_template, migrated_database
from nurseries.budgets import Budget, BudgetLimits
from nurseries.context import UserContext
from nurseries.events import MemoryLog, Streams
from nurseries.ids import new_id
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database
from nurseries.request import Kernel, run_request
from nurseries.testing import running_cluster
from tests.fixtures.pieces import Pieces

STEPS = 8
USERS = 20
RUNS = 200
"""Of all users together, in each round; those of one user one after the other."""


class InstantModel:
    """Asks for the clock as often as the message says, then answers."""

    @asynccontextmanager
    async def stream(self, conversation):
        steps = int(conversation.turns[0].text)
        made = sum(isinstance(turn, ToolTurn) for turn in conversation.turns)
        if made < steps:
            yield Pieces([ToolCall("c", "clock", {}), Usage(10, 5)])
        else:
            yield Pieces([TextPiece("It is late."), Usage(10, 5)])


class Worker(Agent):
    """What the built-in assistant is, with one tool."""

    name = "worker"
    description = "Works."
    system = "You tell the time."
    tools = ("clock",)
    resumable = True


def catalog():
    agents = built_in_agents()
    agents.register(Worker)
    return Catalog(
        agents=agents, tools=built_in_tools(), model=InstantModel, limits=RunLimits(steps=STEPS + 1)
    )


def people(owner):
    """Make users with a thread for every run there may be."""
    with psycopg.connect(owner, autocommit=True) as connection:
        users = [new_id() for _ in range(USERS)]
        for user_id in users:
            connection.execute(
                "INSERT INTO users (user_id, email, email_key, password_hash) VALUES (%s, %s, %s, '')",
                (user_id, f"{user_id}@example.org", f"{user_id}@example.org"),
            )
    return users


def new_thread(connection, user_id):
    thread_id = new_id()
    connection.execute("INSERT INTO threads (thread_id, user_id) VALUES (%s, %s)", (thread_id, user_id))
    return thread_id


@asynccontextmanager
async def engine_alone(database):
    """Runs in the engine, events in memory; yields a function that does one."""
    async with open_pool(database.request) as pool:
        kernel = Kernel(pool, MemoryLog(Streams()), Budget(BudgetLimits(total=1000, per_user=100)))
        made = catalog()

        async def one(user_id, thread_id, content):
            async def work(request):
                return await run_agent(request, made, agent="worker", content=content, message_id="m")

            context = UserContext(user_id=user_id, thread_id=thread_id, run_id=new_id())
            answer = await run_request(kernel, context, work)
            assert answer.output == "It is late.", answer

        yield one


@asynccontextmanager
async def server(database):
    """Runs as a server runs them; yields a function that does one."""
    limits = PoolLimits(size=4, overflow=0, per_user=4)
    async with (
        open_pool(database.request) as pool,
        open_pool(database.journal, limits) as log,
        trio.open_nursery() as services,
    ):
        journal = Journal(Database(log, borrower="journal"), Streams())
        await services.start(journal.run)
        kernel = Kernel(pool, journal, Budget(BudgetLimits(total=1000, per_user=100)))
        runs = Runs(kernel, journal, catalog(), RunSettings())
        async with trio.open_nursery() as owner:

            async def one(user_id, thread_id, content):
                async with open_call(kernel, user_id, thread_id=thread_id) as call:
                    ask = Ask(thread_id=thread_id, content=content, agent="worker")
                    accepted = await runs.submit(call, ask, owner)
                await accepted.run.done.wait()
                assert accepted.run.status == "completed", accepted.run.failure

            yield one
        services.cancel_scope.cancel()


async def cpu_of(one, threads, content):
    """Return the CPU seconds of one run, when these users run theirs at the same time."""

    async def user(user_id, own):
        for thread_id in own:
            await one(user_id, thread_id, content)

    began = time.process_time()
    async with trio.open_nursery() as nursery:
        for user_id, own in threads.items():
            nursery.start_soon(user, user_id, own)
    return (time.process_time() - began) / RUNS


async def measure(database, rounds, profile):
    users = people(database.owner)
    with psycopg.connect(database.owner, autocommit=True) as connection:

        def threads(count):
            return {
                user: [new_thread(connection, user) for _ in range(RUNS // count)] for user in users[:count]
            }

        async with engine_alone(database) as alone, server(database) as whole:
            houses = (("engine", alone, USERS), ("server", whole, USERS), ("server", whole, 1))
            results = {(name, count): [] for name, _, count in houses}
            for number in range(rounds + 1):
                for name, one, count in houses:
                    empty = await cpu_of(one, threads(count), "0")
                    full = await cpu_of(one, threads(count), str(STEPS))
                    if number:  # the first round pays for connections, caches and prepared statements
                        results[name, count].append((1000 * (full - empty) / STEPS, 1000 * empty))
            if profile:
                for name, one, count in houses:
                    profiler = cProfile.Profile()
                    prepared = threads(count)
                    profiler.enable()
                    await cpu_of(one, prepared, str(STEPS))
                    profiler.disable()
                    print(f"-- {name}, {count} at once")
                    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(45)
    return results


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    configure_logging("warning")
    with running_cluster() as cluster, migrated_database(cluster, make_template(cluster)) as database:
        results = trio.run(partial(measure, database, options.rounds, options.profile))
    print(f"CPU in milliseconds; {STEPS} steps a run, median of {options.rounds} rounds")
    most = 0.0
    for (name, count), rounds in results.items():
        step, run = (statistics.median(each) for each in zip(*rounds, strict=True))
        print(f"{name}, {count:2} at once   a step {step:6.3f}   a run without steps {run:6.3f}")
        most = max(most, step)
    if options.limit is not None and most > options.limit:
        sys.exit(f"a step costs more than {options.limit:g} ms")


if __name__ == "__main__":
    main()
