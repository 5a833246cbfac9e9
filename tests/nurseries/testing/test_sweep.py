"""Cancelling everywhere: what forgets a shield is found, what does not passes, and the sweep ends by itself."""

import pytest
import trio

from nurseries.cleanup import cleanup_scope
from nurseries.postgres.exchange import Exchange
from nurseries.postgres.pool import Pool, PoolLimits, open_pool
from nurseries.postgres.scoped import ScopedDatabase
from nurseries.postgres.transaction import Transaction
from nurseries.testing import cancel_everywhere


class Desks:
    """Something that is taken and must be put back, as a scenario with two tasks does it."""

    def __init__(self, *, late=False, shield=True):
        self.free = 1
        self.late = late
        self.shield = shield
        self.sat = 0

    async def sit(self):
        await trio.lowlevel.checkpoint()
        self.free -= 1
        if self.late:
            await trio.lowlevel.checkpoint()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 0)
                nursery.start_soon(trio.sleep, 0)
            self.sat += 1
        finally:
            with cleanup_scope() if self.shield else trio.CancelScope():
                await trio.lowlevel.checkpoint()
                self.free += 1

    async def tidy(self):
        assert self.free == 1, "a desk is lost"


async def test_what_cleans_up_after_itself_passes():
    """Every moment of every task of the scenario is met, once, and the scenario survives it."""
    desks = Desks()
    sweep = await cancel_everywhere(desks.sit, desks.tidy)
    # The scenario's own task takes four steps, each child two; each step has a beginning and an end.
    assert (sweep.steps, sweep.points) == (8, 15)
    assert 0 < sweep.caught < sweep.points
    # The rehearsal, those that were cancelled too late to notice, and those in which the point was not reached.
    assert desks.sat == 1 + (sweep.points - sweep.caught) + 3


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ({"late": True}, "await trio.lowlevel.checkpoint()"),
        ({"shield": False}, "async with trio.open_nursery()"),
    ],
    ids=["a checkpoint between taking and the try", "a cleanup without its shield"],
)
async def test_a_leak_is_found_with_its_line(fault, line):
    """The invariant's own message comes with step, task and line of the moment."""
    desks = Desks(**fault)
    with pytest.raises(AssertionError, match="a desk is lost") as failure:
        await cancel_everywhere(desks.sit, desks.tidy)
    [note] = failure.value.__notes__
    assert "step 2, in task Desks.sit, as it began to wait" in note
    assert f"in Desks.sit: {line}" in note


async def test_a_scenario_that_fails_by_itself_is_said_to():
    """An error without any cancellation is not blamed on one."""

    async def broken():
        await trio.lowlevel.checkpoint()
        raise LookupError

    with pytest.raises(LookupError) as failure:
        await cancel_everywhere(broken)
    assert failure.value.__notes__ == ["not cancelled at all: it fails by itself"]


async def test_an_error_that_a_cancellation_becomes_is_found():
    """A scenario that turns a cancellation into something else is at fault, and the moment is named."""

    async def confused():
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            raise LookupError("who cancelled?") from None

    with pytest.raises(LookupError, match="who cancelled") as failure:
        await cancel_everywhere(confused)
    assert "cancelled at point 0" in failure.value.__notes__[0]


async def test_a_shield_without_a_deadline_is_reported_and_not_waited_for():
    """A scenario that hides from its cancellation for ever is ended, with the line where it hides."""

    async def hides():
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()

    with pytest.raises(AssertionError, match=r"had not ended after 0\.1 s") as failure:
        await cancel_everywhere(hides, seconds=0.1)
    assert "hides: await trio.sleep_forever()" in str(failure.value)


async def test_a_scenario_without_end_is_given_up():
    """More moments than allowed are an error of the test."""

    async def endless():
        try:
            await trio.sleep_forever()
        finally:
            with cleanup_scope():
                for _ in range(10):
                    await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match="had not ended"):
        await cancel_everywhere(endless, seconds=0.1)

    async def long():
        for _ in range(20):
            await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match="after 10 points"):
        await cancel_everywhere(long, points=10)


async def test_tasks_outside_of_the_scope_are_left_alone(nursery):
    """What the scenario starts elsewhere is not cancelled, and its steps are no points."""
    ended = []

    async def outside():
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        ended.append(True)

    async def scenario():
        nursery.start_soon(outside)
        await trio.lowlevel.checkpoint()

    sweep = await cancel_everywhere(scenario)
    assert sweep.steps == 2
    await trio.testing.wait_all_tasks_blocked()
    assert len(ended) == 1 + sweep.points + 3


async def test_something_else_than_the_scope_can_be_cancelled():
    """`cancel` acts in place of the scope, on what was prepared for the run."""
    states = []

    async def prepare():
        return trio.Event()

    async def scenario(event):
        for _ in range(5):
            await trio.lowlevel.checkpoint()

    async def look(event):
        states.append(event.is_set())

    sweep = await cancel_everywhere(scenario, look, prepare=prepare, cancel=trio.Event.set)
    assert sweep.caught == 0
    assert states == [False] + sweep.points * [True] + 3 * [False]


# -- a real database -----------------------------------------------------------------------------------


async def swept(notes, fault=None):
    """Sweep a transaction and a query in two tasks that share a connection; look at pool and server after each."""
    limits = PoolLimits(size=1, overflow=0, ready=0, recycle_seconds=0)  # so that each unit opens one
    async with open_pool(notes.conninfo, limits) as pool:

        async def units():
            async def converse():
                async with ScopedDatabase(pool, "ann").transaction() as transaction:
                    await transaction.execute("INSERT INTO notes (text) VALUES ('one')")
                    await transaction.fetch("SELECT * FROM notes")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(converse)
                nursery.start_soon(ScopedDatabase(pool, "bob").fetch, "SELECT count(*) FROM notes")

        async def at_rest():
            statistics = pool.statistics()
            assert (statistics.checked_out, statistics.waiting) == (0, 0), "a lease is lost"
            assert statistics.invalidated == 0, "a connection came back as nobody else may have it"
            assert [state for _, state in notes.sessions() if state != "idle"] == [], "a transaction is open"

        return await cancel_everywhere(units, at_rest)


async def test_the_driver_survives_every_moment(notes):
    """Waiting for the connection, opening it, statements under way, COMMIT and the return."""
    sweep = await swept(notes)
    assert sweep.points > 20


async def forget_rollback(self):
    self._ended = True


async def forget_to_stop(self):
    return True


async def lose_lease(self, borrower, acquire=Pool.acquire):
    connection = await acquire(self, borrower)
    await trio.lowlevel.checkpoint()
    return connection


@pytest.mark.parametrize(
    ("place", "name", "fault", "message"),
    [
        (Transaction, "roll_back", forget_rollback, "came back"),
        (Exchange, "stop", forget_to_stop, None),  # what then breaks is up to libpq
        (Pool, "acquire", lose_lease, "a lease is lost"),
    ],
    ids=["no rollback", "statement not stopped", "lease lost"],
)
async def test_the_sweep_finds_a_fault_in_the_driver(notes, monkeypatch, place, name, fault, message):
    """Each release path, taken away, is missed at some moment."""
    monkeypatch.setattr(place, name, fault)
    with pytest.raises(Exception, match=message) as failure:
        await swept(notes)
    assert any("cancelled at point" in note for note in failure.value.__notes__)
