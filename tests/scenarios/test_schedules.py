"""Eight users at once under two hundred schedules: whatever the order, whoever is cancelled, each has their own."""

import json
import random

import psycopg
import pytest
import trio

from app.settings import PoolSettings, RunSettings
from app.testing.house import Guest, House
from nurseries.testing import lease_ledger, replay
from tests.scenarios.stage import ENDINGS, STATES

USERS = 8
SCHEDULES = 200
LONGEST = 60
"""Passes of the scheduler until somebody is cancelled; a turn takes about as many."""

TURN = "calculate 6*7\nsearch zebra -zebra"
"""Two tools at once. What the search finds must not depend on a message that is being committed at that moment."""

ACCEPTED = "SELECT run_id::text FROM runs WHERE thread_id = %s ORDER BY created_at"
LOG = "SELECT lines FROM events WHERE thread_id = %s ORDER BY first_seq"


@pytest.fixture
def nurseries_settings():
    """Room for less than everybody, so that they wait for one another."""
    return {
        "agents": "tests.scenarios.patient_agents",
        "pool": PoolSettings(size=3, overflow=1, per_user=2),
        "runs": RunSettings(running_per_user=1, requests=20, requests_per_user=4),
    }


@pytest.fixture
def meet(nurseries_house, nurseries_database, watch):
    """A scenario: everybody talks, with cancellations at moments that the seed decides; then all is looked at."""

    async def play() -> None:
        with lease_ledger() as ledger:
            async with nurseries_house() as house:
                watch.over(house.pools.kernel.live, house.shared)
                guests = [house.user() for _ in range(USERS)]
                async with trio.open_nursery() as nursery:
                    for guest in guests:
                        nursery.start_soon(talk, guest)
                await house.runs.wait_idle()
                assert house.pools.kernel.budget.statistics().in_use == 0
                assert house.pools.journal.statistics().threads == 0
                ledger.check(pools_open=True)
                for guest in guests:
                    look_at(house, guest, [other for other in guests if other is not guest])
                watch.no_more_over(house.pools.kernel.live)
            ledger.check()
        assert not watch.findings, watch.told()
        assert admin.execute(STATES).fetchall() == []

    with psycopg.connect(nurseries_database.owner, autocommit=True) as admin:
        yield play


async def talk(guest: Guest) -> None:
    """Use two devices at the same conversation, cancel what still runs, and compare what was heard with the log."""
    house = guest.house
    with house.pools.streams.listen(guest.user_id) as outbox:
        async with trio.open_nursery() as devices:
            for _ in range(2):
                devices.start_soon(use_device, guest)
        for run in house.runs:
            if run.context.user_id == guest.user_id:
                await house.runs.cancel(guest.user_id, run.run_id)
        assert [json.loads(event.data) for event in outbox.take_nowait()] == log_of(guest)


async def use_device(guest: Guest) -> None:
    """Send a message over a socket that may close at any moment, as `nurseries.session` closes one."""
    leaves = random.random() < 0.5
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as requests:
            owner = random.choice([requests, guest.house.nursery])
            waits = leaves or owner is not requests
            outer.start_soon(
                ask, guest, random.choice(["assistant", "patient" if waits else "assistant"]), owner
            )
            await disturb(guest)
            if leaves:
                requests.cancel_scope.cancel()
        if leaves:
            outer.cancel_scope.cancel()


async def ask(guest: Guest, agent: str, owner: trio.Nursery) -> None:
    """Send a message that names its user."""
    on_conflict = random.choice(["enqueue", "enqueue", "interrupt", "rollback"])
    await guest.submit(agent, f"{TURN}\n{canary(guest)}", owner, on_conflict=on_conflict)


async def disturb(guest: Guest) -> None:
    """After a while, cancel some of the user's runs."""
    for _ in range(random.randrange(LONGEST)):
        await trio.lowlevel.checkpoint()
    for run in guest.house.runs:
        if run.context.user_id == guest.user_id and random.random() < 0.3:
            run.cancel("requested")


def look_at(house: House, guest: Guest, others: list[Guest]) -> None:
    """Every run has its story, with one end; the numbers have no gap; nobody else is in it."""
    log = log_of(guest)
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
    assert {event["user_id"] for event in log} <= {guest.user_id}
    assert not any(canary(other) in json.dumps(log) for other in others)
    story = {run_id: [] for (run_id,) in house.rows(ACCEPTED, guest.thread_id)}
    for event in log:
        story[event["run_id"]].append(event["type"])
    for types in story.values():
        assert types[0] == "run_queued"
        assert [kind for kind in types if kind in ENDINGS] == [types[-1]], types
    queued = [event["run_id"] for event in log if event["type"] == "run_queued"]
    assert queued == list(story), "messages and runs are not in the same order"


def log_of(guest: Guest) -> list[dict]:
    """Return the event log of the guest's thread."""
    return [
        json.loads(line) for (lines,) in guest.house.rows(LOG, guest.thread_id) for line in lines.split("\n")
    ]


def canary(guest: Guest) -> str:
    """Return a word that nobody else says."""
    return f"canary-of-{guest.user_id}"


def test_no_schedule_breaks_anything(meet, explore):
    """Two hundred schedules of eight users, half of whose sockets close and a third of whose runs are cancelled."""
    exploration = explore(meet, schedules=SCHEDULES)
    assert len(set(exploration.digests.values())) == SCHEDULES


def test_a_seed_is_a_schedule(meet):
    """The same seed gives the same steps, on two runs, for hundreds of steps."""
    for seed in range(10):
        first, second = replay(meet, seed=seed), replay(meet, seed=seed)
        assert first.steps == second.steps
        assert len(first.steps) > 500
