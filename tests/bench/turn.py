"""What one chat turn costs the server's process: ours and the hand-written peer, by turns, on one PostgreSQL.

The two servers are up at the same time and play alternately, so that whatever else the machine does touches
both. Each turn is the same 24 frames and two queries, checked frame by frame by the load generator.

    python -m tests.bench.turn [USERS] [TURNS] [ROUNDS]
"""

import io
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import attrs
import psutil
import psycopg
import trio
from psycopg.conninfo import make_conninfo
from rich.console import Console

from app.cli.bench import Account, Plan, open_seats, play, sign_up
from app.cli.client import open_api
from app.cli.load import Order, Seat
from nurseries.postgres.embedded import open_embedded
from tests.bench.peer_fastapi import SCHEMA

ROOT = Path(__file__).parent.parent.parent


@attrs.define(eq=False)
class Contender:
    """A running server with its users at their sockets; what each round cost, in milliseconds a turn."""

    name: str
    process: psutil.Process
    plan: Plan
    seats: list[Seat]
    costs: list[float] = attrs.field(factory=list)
    database_costs: list[float] = attrs.field(factory=list)


def cpu_seconds(process):
    """What a process has used, with its children, those that have ended too."""
    times = process.cpu_times()
    ended = times.children_user + times.children_system
    return times.user + times.system + ended + sum(map(cpu_seconds, process.children()))


@asynccontextmanager
async def server(*command, environment=()):
    """Run a server that says `listening on URL`; yields the URL and its process."""
    process = await trio.lowlevel.open_process(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        env={**os.environ, **dict(environment)},
        cwd=ROOT,
    )
    async with process.stdout:
        text = b""
        with trio.fail_after(60):
            while b"listening on " not in text or not text.endswith(b"\n"):
                if not (data := await process.stdout.receive_some()):
                    raise SystemExit(f"{command[0]} did not start")
                text += data
        url = text.decode().split("listening on ")[1].split()[0]
        try:
            yield url, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            with trio.move_on_after(20, shield=True) as patience:
                await process.wait()
            if patience.cancelled_caught:
                process.kill()


@asynccontextmanager
async def ours(conninfo, plan, console):
    async with server("-m", "app", "serve", "--port", "0", "--load-agent", "--database-url", conninfo) as (
        url,
        process,
    ):
        plan = attrs.evolve(plan, url=url)
        async with open_api(url, patience=300) as api:
            accounts = await sign_up(api, [1] * plan.users, console)
        async with open_seats(plan, accounts, console) as seats:
            yield Contender("nurseries", process, plan, seats)


@asynccontextmanager
async def peer(conninfo, plan, console):
    async with server("-m", "tests.bench.peer_fastapi", conninfo) as (url, process):
        plan = attrs.evolve(plan, url=url)
        accounts = []
        for _ in range(plan.users):
            user_id = str(uuid4())
            accounts.append(Account(user_id, user_id, {str(uuid4()): 0}))
        async with open_seats(plan, accounts, console) as seats:
            yield Contender("FastAPI + uvloop + asyncpg", process, plan, seats)


def create_database(postgres, name, schema=""):
    """Make an empty database and return how its owner gets in."""
    with psycopg.connect(postgres.conninfo(), autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(postgres.conninfo(name), autocommit=True) as owner:
        owner.execute(schema or "SELECT 1")
    return postgres.conninfo(name)


async def round_of(contender, database, console):
    before = cpu_seconds(contender.process), cpu_seconds(database)
    tally, seconds = await play(contender.plan, contender.seats, [], console)
    after = cpu_seconds(contender.process), cpu_seconds(database)
    cost, database_cost = (
        (end - start) * 1000 / tally.turns for start, end in zip(before, after, strict=True)
    )
    contender.costs.append(cost)
    contender.database_costs.append(database_cost)
    faults = tally.misdelivered + tally.lost + tally.repeated + tally.errors.total()
    print(
        f"{contender.name:28} {cost:6.3f} ms CPU a turn, database {database_cost:6.3f} ms,"
        f" {tally.turns / seconds:6.1f} turns/s, {faults} faults",
        flush=True,
    )


async def main(users, turns, rounds):
    console = Console(file=io.StringIO())
    plan = Plan("", users, turns, 0.0, 0, Order(20, 2, 64, 0))
    with tempfile.TemporaryDirectory(prefix="nurseries-bench-") as place:
        Path(place).chmod(0o711)
        async with open_embedded(Path(place, "postgres")) as postgres:
            for_us = create_database(postgres, "ours")
            for_peer = make_conninfo(create_database(postgres, "peer", SCHEMA), user="peer")
            async with ours(for_us, plan, console) as we, peer(as_url(for_peer), plan, console) as they:
                database = psutil.Process(postgres.pid)
                for contender in (we, they):  # warm: caches, prepared statements, connections
                    await round_of(contender, database, console)
                    contender.costs.clear()
                    contender.database_costs.clear()
                for name in (
                    "ours",
                    "peer",
                ):  # as autovacuum does within minutes; until then plans are guesses
                    with psycopg.connect(postgres.conninfo(name), autocommit=True) as owner:
                        owner.execute("ANALYZE")
                await compare(we, they, database, rounds, console)


async def compare(we, they, database, rounds, console):
    both = [we, they]
    for _ in range(rounds):
        both.reverse()
        for contender in both:
            await round_of(contender, database, console)
    for contender in (we, they):
        print(
            f"{contender.name}: {statistics.median(contender.costs):.3f} ms of server CPU a turn,"
            f" {statistics.median(contender.database_costs):.3f} ms of the database's (medians of {rounds} rounds)"
        )
    print(f"ratio {statistics.median(we.costs) / statistics.median(they.costs):.2f}")


def as_url(conninfo):
    """asyncpg reads URLs alone."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    return "postgresql://{user}@/{dbname}?host={host}&port={port}".format(**parts)


if __name__ == "__main__":
    defaults = (20, 100, 5)
    given = tuple(int(word) for word in sys.argv[1:])
    trio.run(partial(main, *given, *defaults[len(given) :]))
