"""The ledger: who had what, from when to when, and what is still out."""

import re

import pytest
import trio

from nurseries import observing
from nurseries.budgets import Budget, BudgetLimits
from nurseries.postgres.connection import Connection
from nurseries.postgres.listen import listen
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import ScopedDatabase
from nurseries.testing import lease_ledger


def told(ledger):
    """Return kind and holder of each entry."""
    return [(entry.kind, entry.holder) for entry in ledger.entries]


async def test_a_unit_of_work_is_entered_and_comes_back(notes):
    """The place in the pool's budget, the session that was opened for it, and the connection lent."""
    with lease_ledger() as ledger:
        async with open_pool(notes.conninfo, PoolLimits(ready=0)) as pool:
            await ScopedDatabase(pool, "ann").fetch("SELECT 1")
            assert [entry.kind for entry in ledger.out] == ["sessions with the database"]
            ledger.check(pools_open=True)
            with pytest.raises(AssertionError, match="still out: 1 of 3"):
                ledger.check()
    [(_, role)] = [each for each in told(ledger) if each[0].startswith("sessions")]
    assert role in notes.conninfo
    assert told(ledger) == [
        ("database connections", "ann"),
        ("sessions with the database", role),
        ("connections lent", "ann"),
    ]
    assert all(entry.taken <= entry.returned for entry in ledger.entries)
    ledger.check()


async def test_what_is_out_is_named_with_holder_and_line():
    """The message has the budget, the user, the task and the line that took it."""
    with lease_ledger() as ledger:
        budget = Budget(BudgetLimits(), name="desks")

        async def forgetful():
            await budget.acquire("ann")  # and never gives it back

        async with trio.open_nursery() as nursery:
            nursery.start_soon(forgetful)
        async with budget.lease("bob"):
            pass
    assert [entry.holder for entry in ledger.out] == ["ann"]
    with pytest.raises(AssertionError, match="still out: 1 of 2") as failure:
        ledger.check()
    message = str(failure.value)
    assert re.search(r"desks: ann, from \d+\.\d{3} s, still out, in task", message)
    assert "still out, in task test_what_is_out_is_named_with_holder_and_line.<locals>.forgetful" in message
    assert 'await budget.acquire("ann")' in message


async def test_a_connection_outside_of_any_pool_is_entered(notes):
    """Sessions are known however they came to be, those that listen too, and end when they are closed."""
    with lease_ledger() as ledger:
        connection = await Connection.open(notes.conninfo)
        assert len(ledger.out) == 1
        connection.close()
        connection.close()
        async with listen(notes.conninfo, "news"):
            assert len(ledger.out) == 1
    assert len(ledger.entries) == 2
    ledger.check()


async def test_what_is_taken_before_or_afterwards_is_not_entered():
    """The ledger has what happens in its block, whatever else comes back in it; outside nobody looks on."""
    budget = Budget(BudgetLimits())
    before = budget.acquire_nowait("ann")
    with lease_ledger() as ledger:
        budget.release(before)
        async with budget.lease("bob"):
            assert [entry.holder for entry in ledger.leases] == ["bob"]
    async with budget.lease("cid"):
        ledger.check()
    assert [entry.holder for entry in ledger.entries] == ["bob"]
    assert observing.observer is None
