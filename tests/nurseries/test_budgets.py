"""Budgets: a user's own limit, then everybody's; bounded waiting; nothing kept of users who are gone."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nurseries.budgets import Budget, BudgetLimits
from nurseries.errors import PoolExhausted


@pytest.fixture
def budget():
    return Budget(BudgetLimits(total=3, per_user=2, wait_seconds=10, waiters=3, waiters_per_user=2))


async def hold(budget, user_id, seen=None, *, task_status=trio.TASK_STATUS_IGNORED):
    async with budget.lease(user_id) as lease:
        if seen is not None:
            seen.append(user_id)
        task_status.started(lease)
        await trio.sleep_forever()


async def test_leases_are_counted_and_come_back(budget):
    """What is out is seen while it is out, and nothing is left afterwards but the peak."""
    async with budget.lease("ann") as one, budget.lease("ann") as two:
        assert set(budget.leases()) == {one, two}
        assert budget.statistics().in_use == 2
        assert budget.statistics().users == 1
    after = budget.statistics()
    assert (after.in_use, after.users, after.waiting, after.peak) == (0, 0, 0, 2)


async def test_a_user_waits_behind_their_own_leases_only(budget, nursery):
    """A third lease of one user waits although there is room; another user's first does not."""
    await nursery.start(hold, budget, "ann")
    await nursery.start(hold, budget, "ann")
    seen = []
    nursery.start_soon(hold, budget, "ann", seen)
    await wait_all_tasks_blocked()
    assert seen == []
    assert not budget.is_full
    assert not budget.is_contended
    async with budget.lease("bob"):
        assert budget.is_full
    nursery.cancel_scope.cancel()


async def test_two_waiters_of_one_user_are_two(budget, nursery):
    """One release lets one of them in, not both."""
    first = await budget.acquire("ann")
    second = await budget.acquire("ann")
    seen = []
    nursery.start_soon(hold, budget, "ann", seen)
    nursery.start_soon(hold, budget, "ann", seen)
    await wait_all_tasks_blocked()
    budget.release(first)
    await wait_all_tasks_blocked()
    assert seen == ["ann"]
    assert budget.statistics().in_use == 2
    budget.release(second)
    await wait_all_tasks_blocked()
    assert seen == ["ann", "ann"]
    nursery.cancel_scope.cancel()


async def test_a_greedy_user_does_not_hold_up_the_common_queue(budget, nursery):
    """With all leases out, the one that comes back goes to who has waited longest, by user and not by noise."""
    ann = [await budget.acquire("ann") for _ in range(2)]
    bob = await budget.acquire("bob")
    seen = []
    for user in ("ann", "ann", "eve"):
        nursery.start_soon(hold, budget, user, seen)
        await wait_all_tasks_blocked()
    assert budget.is_contended
    budget.release(bob)  # ann is at her own limit, so the place is eve's although she came last
    await wait_all_tasks_blocked()
    assert seen == ["eve"]
    for lease in ann:
        budget.release(lease)
    await wait_all_tasks_blocked()
    assert seen == ["eve", "ann", "ann"]
    nursery.cancel_scope.cancel()


async def test_nobody_is_overtaken_by_who_does_not_wait(budget, nursery):
    """A lease that comes free belongs to who waits for it, not to who happens to ask at that moment."""
    leases = [await budget.acquire(user) for user in ("a", "b", "c")]
    seen = []
    nursery.start_soon(hold, budget, "d", seen)
    await wait_all_tasks_blocked()
    budget.release(leases.pop())
    with pytest.raises(trio.WouldBlock):
        budget.acquire_nowait("e")
    await wait_all_tasks_blocked()
    assert seen == ["d"]
    for lease in leases:
        budget.release(lease)
    nursery.cancel_scope.cancel()


async def test_waiting_ends_in_time(budget, mock_clock):
    """Both limits together are waited for no longer than allowed, and it is counted."""
    leases = [await budget.acquire(user) for user in ("a", "b", "c")]

    async def wait():
        with pytest.raises(PoolExhausted, match="10 s"):
            await budget.acquire("d")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert budget.statistics().waiting == 1
        mock_clock.jump(10)
    for lease in leases:
        budget.release(lease)
    after = budget.statistics()
    assert (after.in_use, after.users, after.waiting, after.waits, after.timeouts) == (0, 0, 0, 1, 1)


async def test_the_queue_is_bounded_for_all_and_for_each(budget, nursery):
    """Who would be one too many in the queue is refused at once."""
    for user in ("a", "b", "c"):
        await nursery.start(hold, budget, user)
    for user in ("a", "a"):
        nursery.start_soon(hold, budget, user)
    await wait_all_tasks_blocked()
    with pytest.raises(PoolExhausted):  # the user's own queue
        await budget.acquire("a")
    nursery.start_soon(hold, budget, "d")
    await wait_all_tasks_blocked()
    with pytest.raises(PoolExhausted):  # the queue of all
        await budget.acquire("e")
    assert budget.statistics().refused == 2
    assert budget.statistics().users == 4
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("user", ["a", "d"])  # waits for their own limit; waits for the common one
async def test_a_cancelled_wait_leaves_no_trace(user):
    """A place in either queue is given up whole."""
    budget = Budget(BudgetLimits(total=2, per_user=1))
    async with budget.lease("a"), budget.lease("b"):
        with trio.CancelScope() as scope:
            scope.cancel()
            await budget.acquire(user)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(budget.acquire, user)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert budget.statistics().waiting == 0
        assert budget.statistics().users == 2
        assert not budget.is_contended
    async with budget.lease(user), budget.lease("other"):
        assert budget.statistics().in_use == 2


async def test_a_wait_that_was_cancelled_halfway_gives_back_the_users_own_place():
    """Who had passed their own limit and waited for the common one does not count against themselves."""
    budget = Budget(BudgetLimits(total=2, per_user=2))
    async with budget.lease("a"):
        async with budget.lease("b"), trio.open_nursery() as nursery:
            nursery.start_soon(budget.acquire, "a")
            await wait_all_tasks_blocked()
            assert budget.is_contended
            nursery.cancel_scope.cancel()
        budget.release(budget.acquire_nowait("a"))


async def test_users_who_are_gone_are_forgotten(budget):
    """The memory of a budget does not grow with the number of users it has ever seen."""
    for n in range(1000):
        async with budget.lease(f"user {n}"):
            assert budget.statistics().users == 1
    assert budget.statistics().users == 0


async def test_the_limits_hold_at_every_moment(nursery):
    """Two hundred tasks of twenty users never exceed a limit, and all of them get their turn."""
    budget = Budget(BudgetLimits(total=5, per_user=2, waiters=200, waiters_per_user=200))
    served = 0

    async def unit(user):
        nonlocal served
        async with budget.lease(user):
            leases = budget.leases()
            assert len(leases) <= 5
            assert sum(lease.user_id == user for lease in leases) <= 2
            await trio.lowlevel.checkpoint()
            served += 1

    async with trio.open_nursery() as units:
        for n in range(200):
            units.start_soon(unit, f"user {n % 20}")
    assert served == 200
    assert budget.statistics().peak == 5
