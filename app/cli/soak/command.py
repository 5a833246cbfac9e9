"""`nurseries soak`: users who do everything that the protocol has, for minutes or hours, and a verdict."""

from __future__ import annotations

import random
import sys
import tempfile
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import attrs
import trio
from cyclopts import Parameter, validators
from rich.console import Console

from app.cli.client import open_api
from app.cli.credentials import administrator
from app.cli.failures import explained
from app.cli.load import Tally, require_load_agent
from app.cli.options import DEFAULT_URL, AdminToken, Count, Email, Password, Seconds, Switch, Url
from app.cli.progress import Progress, for_all
from app.cli.soak.marks import Marks
from app.cli.soak.report import SoakReport, make_report, print_report
from app.cli.soak.user import SoakUser
from app.cli.soak.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.cli.client import Api

PATIENCE_SECONDS: Final = 300.0
"""How long one call may be told to come back later."""

STREAMS: Final = 3
"""Connections that a user may have over HTTP at once: a call, and streams that are being left."""


@attrs.frozen
class Plan:
    """What is to be done."""

    url: str
    users: int
    seconds: float
    pause: float


async def soak_command(  # noqa: PLR0913  # a command has as many parameters as flags
    *,
    url: Url = DEFAULT_URL,
    users: Count = 100,
    minutes: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 10.0,
    pause: Seconds = 3.0,
    email: Email = None,
    password: Password = None,
    admin_token: AdminToken = None,
    json: Switch = False,
) -> int:
    """Let many users do everything for a long time, check all that reaches them, and watch the server meanwhile.

    Each user chats over sockets that break, are slow, or are sent nonsense; asks over HTTP, waits, watches and
    leaves; cancels, interrupts, rolls back; logs in and out, refreshes, deletes, and asks for what is others'. Every
    text carries a word that only its user says; every frame and every answer is searched for the words and ids of
    others, and every event must be the next of its conversation.

    The server needs its `load` agent, and an administrator must look at it. Exits with 0 if every figure is as it
    should be, else with 1; 3 when the administrator cannot log in; 4 when the server cannot be reached.

    Args:
        url: Where the server is.
        users: How many users.
        minutes: How long.
        pause: Seconds between two things that a user does, on the average; each does two things at a time.
        email: The administrator's account.
        password: Its password, needed for the first login only.
        admin_token: An administrator's access token, instead of email and password, for less than a quarter of an hour.
        json: Print the report as JSON.
    """
    with explained() as ending:
        async with open_api(url, patience=PATIENCE_SECONDS, connections=STREAMS * users + 10) as api:
            token = await administrator(api, url, email, password, admin_token)
            report = await soak(Plan(url, users, minutes * 60, pause), api, token, Console(stderr=True))
        if json:
            sys.stdout.write(dumps({**attrs.asdict(report), "bad": report.bad}, indent=2) + "\n")
        else:
            print_report(report, Console())
        ending.status = 1 if report.bad else 0
    return ending.status


async def soak(plan: Plan, api: Api, token: Callable[[], Awaitable[str]], console: Console) -> SoakReport:
    """Sign up, live, come to rest, and report.

    Raises:
        ClientError: the server cannot be reached, or does not let the users or the administrator in.
    """
    marks, tally, done = Marks(), Tally(), dict[str, int]()
    watch = Watch(api, token)
    await watch.look()  # whoever may not look learns it before a hundred users have signed up
    await require_load_agent(api, await token())
    with tempfile.TemporaryDirectory(prefix="nurseries-soak-") as place:
        users = [SoakUser(plan.url, api, Path(place), number) for number in range(plan.users)]

        async def sign_up(number: int) -> None:
            def foreign_thread() -> str:
                others = [user for user in users if user is not users[number]]
                return random.choice(others).thread_id if others else marks.canary("nobody")

            await users[number].sign_up(marks, tally, done, foreign_thread)

        await for_all(len(users), sign_up, Progress(console, "signing up", len(users)))
        started = trio.current_time()
        async with trio.open_nursery() as watching:
            watching.start_soon(watch.run)
            watching.start_soon(_show, plan, tally, console)
            async with trio.open_nursery() as living:
                for user in users:
                    living.start_soon(user.live, started + plan.seconds, plan.pause)
            watching.cancel_scope.cancel()
        seconds = trio.current_time() - started
    await watch.rest()
    await watch.audit()
    return make_report(plan.users, seconds, tally, done, watch)


async def _show(plan: Plan, tally: Tally, console: Console) -> None:
    """Say how far it is, on a terminal in place, elsewhere a line a minute."""
    started = trio.current_time()
    console.print(f"soaking: {plan.users} users, {plan.seconds / 60:.1f} min", highlight=False)
    while True:
        await trio.sleep(1.0 if console.is_terminal else 60.0)
        passed = trio.current_time() - started
        text = f"{passed / 60:.1f} min: {tally.turns} turns, {sum(tally.errors.values())} errors"
        console.print(text, end="\r" if console.is_terminal else "\n", highlight=False)
