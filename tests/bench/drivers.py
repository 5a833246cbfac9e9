"""What one pooled query costs the client's process: our driver beside asyncpg, trio-asyncio and triopg.

    python -m tests.bench.drivers [ROUNDS]

needs the extra `bench-drivers`. Each driver runs in a process of its own on the same PostgreSQL and they take
turns, so that whatever else the machine does touches all. A query is: lease a connection, run `SELECT $1::int`,
give the connection back. The figure is the process's CPU time for it, and its ratio in the same round to asyncpg
on asyncio, whose pool is told not to reset the session after each use; the median of the rounds is printed.
Ours is measured three times: the statement alone, a unit with the user's identity in front of it, as the
product runs it, and a unit of three such statements.
"""

import importlib
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from nurseries.postgres.embedded import open_embedded
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import ScopedDatabase, Statement

SQL = "SELECT $1::int"
CHUNK = 1_000
BASELINE = "asyncpg on asyncio"


async def measure(query):
    """Answer each line of standard input with the CPU microseconds of one query."""
    for _ in range(200):
        await query()
    print("ready", flush=True)
    while sys.stdin.readline():
        started = time.process_time()
        for _ in range(CHUNK):
            await query()
        print((time.process_time() - started) / CHUNK * 1e6, flush=True)


# -- ours --------------------------------------------------------------------------------------------


def ours(parameters, kind):
    conninfo = make_conninfo(**parameters, dbname="postgres")

    async def main():
        async with open_pool(conninfo, PoolLimits(size=4)) as pool:
            db = ScopedDatabase(pool, "ann")
            one = [Statement(SQL, (1,))]

            async def alone():
                async with pool.lease("ann") as connection:
                    (result,) = await connection.run(one, commits=True)
                    return connection.rows(result)

            queries = {
                "alone": alone,
                "scoped": lambda: db.fetch(SQL, 1),
                "batch": lambda: db.batch(one * 3),
            }
            await measure(queries[kind])

    trio.run(main)


# -- the others --------------------------------------------------------------------------------------


async def asyncpg_queries(parameters, **options):
    import asyncpg

    async with asyncpg.create_pool(
        **parameters, database="postgres", min_size=4, max_size=4, **options
    ) as pool:

        async def query():
            async with pool.acquire() as connection:
                return await connection.fetch(SQL, 1)

        await measure(query)


def asyncpg_on_asyncio(parameters):
    import asyncio

    async def no_reset(connection):
        """By default every return to the pool is a second round trip, which resets the session."""

    asyncio.run(asyncpg_queries(parameters, reset=no_reset))


def asyncpg_as_it_is(parameters):
    import asyncio

    asyncio.run(asyncpg_queries(parameters))


def asyncpg_on_trio_asyncio(parameters):
    import asyncpg
    import trio_asyncio

    async def main():
        pool = await trio_asyncio.aio_as_trio(asyncpg.create_pool)(
            **parameters, database="postgres", min_size=4, max_size=4
        )

        async def fetch():
            async with pool.acquire() as connection:
                return await connection.fetch(SQL, 1)

        await measure(trio_asyncio.aio_as_trio(fetch))
        await trio_asyncio.aio_as_trio(pool.close)()

    trio_asyncio.run(main)


def triopg_as_it_is(parameters):
    import trio_asyncio
    import triopg

    async def main():
        async with triopg.create_pool(**parameters, database="postgres", min_size=4, max_size=4) as pool:

            async def query():
                async with pool.acquire() as connection:
                    return await connection.fetch(SQL, 1)

            await measure(query)

    trio_asyncio.run(main)


DRIVERS = {
    BASELINE: (asyncpg_on_asyncio, "asyncpg"),
    "asyncpg, with its pool's reset": (asyncpg_as_it_is, "asyncpg"),
    "ours, the statement alone": (partial(ours, kind="alone"), "psycopg"),
    "ours, with the identity": (partial(ours, kind="scoped"), "psycopg"),
    "ours, identity and three statements": (partial(ours, kind="batch"), "psycopg"),
    "asyncpg on trio-asyncio": (asyncpg_on_trio_asyncio, "trio_asyncio"),
    "triopg": (triopg_as_it_is, "triopg"),
}


# -- taking turns ------------------------------------------------------------------------------------


def missing(module):
    """Return why a driver cannot be measured here, or None."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  # whatever keeps it from being imported is the answer
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def worker(name, host):
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.bench.drivers", name, host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n", f"{name} did not start"
        yield process
        process.stdin.close()


def play(process):
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def compare(host, rounds):
    figures = {}
    reasons = {name: missing(module) for name, (_, module) in DRIVERS.items()}
    with_all = [name for name, reason in reasons.items() if reason is None]

    def turn(names, processes):
        if names:
            with worker(names[0], host) as process:
                turn(names[1:], {**processes, names[0]: process})
            return
        for _ in range(rounds):
            for name, process in processes.items():
                figures.setdefault(name, []).append(play(process))

    turn(with_all, {})
    print(f"{'CPU of one query':38}{'median µs':>10}{'ratio':>8}")
    for name, reason in reasons.items():
        if reason is not None:
            print(f"{name:38}{'-':>10}{'-':>8}  {reason}")
            continue
        ratios = [own / base for own, base in zip(figures[name], figures[BASELINE], strict=True)]
        print(f"{name:38}{statistics.median(figures[name]):10.1f}{statistics.median(ratios):8.2f}")


async def main(rounds):
    with tempfile.TemporaryDirectory(prefix="nurseries-bench-") as place:
        Path(place).chmod(0o711)
        async with open_embedded(Path(place, "data")) as postgres:
            host = conninfo_to_dict(postgres.conninfo())["host"]
            await trio.to_thread.run_sync(compare, host, rounds)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        DRIVERS[sys.argv[1]][0]({"host": sys.argv[2], "user": "postgres"})
    else:
        trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 15)
