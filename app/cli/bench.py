"""`nurseries bench`: many users at once, and whether each got what was theirs, once, and how fast."""

from __future__ import annotations

import secrets
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager
from json import dumps
from typing import TYPE_CHECKING, Final

import attrs
import trio
from rich.console import Console

from app.cli.client import Api, open_api
from app.cli.connection import open_connection
from app.cli.failures import explained
from app.cli.load import Order, Seat, Tally, require_load_agent
from app.cli.observer import look
from app.cli.options import DEFAULT_URL, AdminToken, Amount, Count, Seconds, Switch, Url
from app.cli.progress import AT_ONCE, Progress, for_all
from app.cli.report import Greed, Report, ServerUse, make_report, print_report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_SECONDS: Final = 300.0
"""How long one call may be told to come back later: a hundred passwords take their time to hash."""


@attrs.frozen
class Account:
    """A user made for one load run, with the threads to talk in and where their logs stand."""

    user_id: str
    token: str = attrs.field(repr=False)
    threads: dict[str, int]


@attrs.frozen
class Plan:
    """What is to be played."""

    url: str
    users: int
    turns: int
    pause: float
    greedy: int
    order: Order


async def bench_command(  # noqa: PLR0913  # a command has as many parameters as flags
    *,
    url: Url = DEFAULT_URL,
    users: Count = 100,
    turns: Count = 20,
    pause: Seconds = 0.0,
    events: Amount = 20,
    queries: Amount = 2,
    delta_bytes: Count = 64,
    sleep_ms: Amount = 0,
    greedy: Amount = 0,
    admin_token: AdminToken = None,
    json: Switch = False,
) -> int:
    """Play many users at once against a server, and check what each of them receives.

    The server needs its `load` agent. Every text carries the id of the user it is for; every event is
    checked for its user, its thread, its run and its number. Exits with 1 when anything was misdelivered,
    lost, repeated or in error.

    Args:
        url: Where the server is.
        users: How many users, each with a socket.
        turns: How many turns each of them plays.
        pause: Seconds between a user's turns; without it they are played back to back.
        events: Pieces of each answer.
        queries: Database queries of each turn.
        delta_bytes: Bytes of each piece.
        sleep_ms: Milliseconds that each run sleeps, as if it waited for a model.
        greedy: Play everything a second time beside one more user who asks for this many runs at once, each
            in a thread of its own, and report what that does to the others.
        admin_token: An administrator's access token, for a server that shows its metrics to no one else.
        json: Print the report as JSON.
    """
    order = Order(events, queries, delta_bytes, sleep_ms)
    plan = Plan(url, users, turns, pause, greedy, order)
    with explained() as ending:
        report = await measure(plan, admin_token, Console(stderr=True))
        if json:
            sys.stdout.write(dumps(attrs.asdict(report), indent=2) + "\n")
        else:
            print_report(report, Console())
        ending.status = 0 if report.clean else 1
    return ending.status


async def measure(plan: Plan, admin_token: str | None, console: Console) -> Report:
    """Sign up, open the sockets, play, and report.

    Raises:
        ClientError: the server cannot be reached or does not let the users in.
    """
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(
            open_api(plan.url, patience=PATIENCE_SECONDS, connections=AT_ONCE)
        )
        accounts = await sign_up(api, [1] * plan.users + [plan.greedy] * bool(plan.greedy), console)
        await require_load_agent(api, accounts[0].token)
        seats = await stack.enter_async_context(open_seats(plan, accounts, console))
        others, greedy = seats[: plan.users], seats[plan.users :]

        before, cpu = await look(api, admin_token), time.process_time()
        alone, seconds = await play(plan, others, [], console)
        cpu, after = time.process_time() - cpu, await look(api, admin_token)
        everyone = Tally()
        everyone.add_faults(alone)

        greed = None
        if greedy:
            beside, _ = await play(plan, others, greedy, console)
            for tally in (beside, greedy[0].tally):
                everyone.add_faults(tally)
            greed = Greed.between(plan.greedy, greedy[0].tally, alone, beside)

        await _compare_logs(api, accounts, others, everyone)
        report = make_report(
            alone,
            users=plan.users,
            seconds=seconds,
            client_cpu=cpu,
            server=ServerUse.between(before, after, alone.turns),
        )
        return attrs.evolve(report.with_faults(everyone), greedy=greed)


async def sign_up(api: Api, threads: list[int], console: Console) -> list[Account]:
    """Make one account for each entry, with that many threads."""
    accounts: dict[int, Account] = {}

    async def one(number: int) -> None:
        email, password = f"bench-{secrets.token_hex(8)}@example.com", secrets.token_urlsafe(24)
        user_id = await api.register(email, password)
        token = (await api.login(email, password)).access_token
        made = [await api.create_thread(token) for _ in range(threads[number])]
        accounts[number] = Account(user_id, token, {thread.thread_id: thread.last_seq for thread in made})

    await for_all(len(threads), one, Progress(console, "signing up", len(threads)))
    return [accounts[number] for number in range(len(threads))]


@asynccontextmanager
async def open_seats(plan: Plan, accounts: list[Account], console: Console) -> AsyncIterator[list[Seat]]:
    """Open every user's socket, and keep reading it."""
    seats: dict[int, Seat] = {}

    async with trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            seats[number] = await nursery.start(_sit, plan, accounts[number])

        await for_all(len(accounts), one, Progress(console, "connecting", len(accounts)))
        yield [seats[number] for number in range(len(accounts))]
        nursery.cancel_scope.cancel()


async def _sit(plan: Plan, account: Account, *, task_status: trio.TaskStatus[Seat]) -> None:
    async with open_connection(plan.url, account.token, patience=PATIENCE_SECONDS) as connection:
        seat = Seat(connection, account.user_id, account.threads, plan.order, Tally())
        task_status.started(seat)
        await seat.read()


async def play(plan: Plan, seats: list[Seat], greedy: list[Seat], console: Console) -> tuple[Tally, float]:
    """Let everybody play all their turns, the greedy ones as long as the others do; say how long it took."""
    tally = Tally()
    for seat in seats:
        seat.tally = tally
    started = trio.current_time()
    async with trio.open_nursery() as background:
        background.start_soon(_show, tally, Progress(console, "playing", plan.users * plan.turns))
        async with trio.open_nursery() as others:
            for seat in greedy:
                for thread_id in seat.cursors:
                    others.start_soon(seat.play, thread_id, sys.maxsize, 0.0)
            async with trio.open_nursery() as players:
                for seat in seats:
                    for thread_id in seat.cursors:
                        players.start_soon(seat.play, thread_id, plan.turns, plan.pause)
            seconds = trio.current_time() - started
            for seat in greedy:
                seat.stop()
        background.cancel_scope.cancel()
    return tally, seconds


async def _compare_logs(api: Api, accounts: list[Account], seats: list[Seat], everyone: Tally) -> None:
    """Ask how long each log is, so that events missing at its end are seen too."""
    tally = Tally()

    async def one(number: int) -> None:
        account, seat = accounts[number], seats[number]
        seat.tally = tally
        seat.finish({thread: (await api.thread(account.token, thread)).last_seq for thread in seat.cursors})

    await for_all(len(seats), one, None)
    everyone.add_faults(tally)


async def _show(tally: Tally, meter: Progress) -> None:
    while True:
        await trio.sleep(0.2)
        meter.show(tally.turns)
