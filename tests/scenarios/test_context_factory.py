"""Contexts and requests: nothing is shared between them, nothing is left of them, and none is made for nobody."""

import gc
import random
import weakref
from collections import Counter
from functools import partial

import pytest
import trio

from nurseries.context import UserContext
from nurseries.errors import InvalidContext
from nurseries.request import Failure, open_request, run_request

WORKERS, REQUESTS = 10, 20
BATCHES, PAIRS = 50, 8
INVALID = [
    ("user_id", ""),
    ("user_id", "None"),
    ("user_id", "registry"),
    ("thread_id", " padded "),
    ("run_id", "line\nbreak"),
    ("run_id", 7),
    ("request_id", "placeholder"),
    ("agent_context", {"plan": object()}),
]


def context(number, **fields):
    """Return the context of one of many users, who need no rows."""
    return UserContext(
        **{"user_id": f"user-{number}", "thread_id": f"t-{number}", "run_id": f"r-{number}", **fields}
    )


@pytest.fixture
def uncollected(forgotten_logs):
    """Switch the collector off: what goes in this test goes by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def test_no_state_is_shared_between_two_factories(housing):
    """Two kernels over one database: what is open, held and numbered in one is unknown to the other."""
    async with housing(size=1, overflow=0) as one, housing(size=1, overflow=0) as other:
        who = one.context()
        async with one.request(who) as (request, heard), one.pool.lease("busy"):
            assert list(one.kernel.live.requests) == [who.request_id]
            assert list(other.kernel.live.requests) == []
            assert other.kernel.budget.statistics().in_use == 0
            assert other.pool.statistics().checked_out == 0
            with other.streams.listen(who.user_id) as elsewhere:
                await request.events.emit("said", {})
                async with other.request(who) as (twin, twin_heard):
                    assert (await twin.events.emit("said", {})).seq == 1
                    assert len(twin_heard()) == 1
                    assert await twin.database.fetch("SELECT count(*) FROM threads") == [(1,)]
                assert len(elsewhere.take_nowait()) == 1
            assert heard() == [("said", {})]


async def test_no_state_is_shared_between_two_requests_of_one_user(housing):
    """Even for the same user and thread: each has doors and a nursery of its own, and the end of one is not the other's."""
    async with housing(size=2, overflow=0) as house:
        who = house.context()
        async with house.request(who) as (first, _):
            async with house.request(house.context(who.user_id, who.thread_id)) as (second, _):
                for part in ("context", "database", "events", "nursery"):
                    assert getattr(first, part) is not getattr(second, part)
                assert set(house.kernel.live.requests) == {who.request_id, second.context.request_id}
            assert set(house.kernel.live.requests) == {who.request_id}
            assert await first.database.fetch("SELECT count(*) FROM threads") == [(1,)]
            assert (await first.events.emit("said", {})).seq == 1


def test_what_the_caller_keeps_of_a_context_cannot_change_it():
    """Mappings and lists are copied and frozen all the way down, so no two contexts hold the same one."""
    plan = {"steps": ["look", {"tools": ["clock"]}], "who": {"name": "ann"}}
    first, second = context(1, agent_context=plan), context(2, agent_context=plan)
    plan["steps"].append("leak")
    plan["steps"][1]["tools"].append("leak")
    plan["who"]["name"] = "bob"
    for each in (first, second, first.child("sub")):
        assert each.agent_context["steps"] == ("look", {"tools": ("clock",)})
        assert each.agent_context["who"]["name"] == "ann"
        with pytest.raises(TypeError):
            each.agent_context["who"]["name"] = "bob"
    with pytest.raises(AttributeError):
        first.user_id = "user-2"


async def _answers(request):
    await request.events.emit("said", {"to": request.context.user_id})
    return request.context.user_id


async def _fails(request):
    raise ZeroDivisionError(request.context.user_id)


async def _waits(request):
    await trio.sleep_forever()


async def _has_children(request):
    for _ in range(2):
        request.nursery.start_soon(_answers, request)


ENGINES = (_answers, _fails, _waits, _has_children)
OUTCOMES = {str: 1, Failure: 1, type(None): 2}


@pytest.mark.parametrize("count", [100, 10_000])
async def test_contexts_are_gone_after_their_requests(housing, uncollected, count):
    """Of a hundred and of ten thousand nothing is left, however they ended, without calling the collector."""
    async with housing(size=1, overflow=0) as house:
        alive = weakref.WeakSet()
        outcomes = []

        async def serve(numbers):
            for number in numbers:
                await one(number)

        async def one(number):
            who = context(number)
            alive.add(who)

            async def engine(request):
                alive.add(request)
                if ENGINES[number % len(ENGINES)] is _waits:
                    scope.cancel()
                return await ENGINES[number % len(ENGINES)](request)

            outcome = None
            with trio.CancelScope() as scope:
                outcome = await run_request(house.kernel, who, engine)
            outcomes.append(type(outcome))

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for worker in range(WORKERS):
                    nursery.start_soon(serve, range(worker, count, WORKERS))
        assert Counter(outcomes) == {kind: count * share // len(ENGINES) for kind, share in OUTCOMES.items()}
        assert len(alive) == 0
        assert house.kernel.live.requests == {}
        assert house.kernel.budget.statistics().users == 0


async def test_ten_workers_with_twenty_requests_each_have_two_hundred_different_ids(housing):
    """No id comes twice, and in every round all ten requests are open at the same moment: none waits for another."""
    async with housing(size=1, overflow=0) as house:
        ids, meetings = [], [trio.Event() for _ in range(REQUESTS)]
        open_now = 0

        async def worker(number):
            nonlocal open_now
            for meeting in meetings:
                async with open_request(house.kernel, context(number)) as request:
                    ids.append(request.context.request_id)
                    open_now += 1
                    if open_now == WORKERS:
                        assert len(house.kernel.live.requests) == WORKERS
                        open_now = 0
                        meeting.set()
                    await meeting.wait()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for number in range(WORKERS):
                    nursery.start_soon(worker, number)
        assert len(ids) == len(set(ids)) == WORKERS * REQUESTS
        assert house.kernel.budget.statistics().waits == 0


async def test_children_of_one_context_have_ids_of_their_own():
    """Any number of operations started side by side: no run or request id comes twice, the user stays the same."""
    parent = context(1)
    children = [parent.child("search") for _ in range(WORKERS * REQUESTS)]
    assert len({child.run_id for child in children} | {child.request_id for child in children}) == 2 * len(
        children
    )
    assert {(child.user_id, child.thread_id, child.parent_request_id) for child in children} == {
        (parent.user_id, parent.thread_id, parent.request_id)
    }


async def test_validation_is_never_bypassed_under_load(housing):
    """Fifty batches of valid and invalid contexts at once: the valid ones are served, the others refused by name."""
    async with housing(size=1, overflow=0) as house:
        served, refused = [], []

        async def batch(number):
            dice = random.Random(number)
            makers = [partial(context, number * PAIRS + valid) for valid in range(PAIRS)]
            makers += [partial(context, number, **{field: value}) for field, value in INVALID]
            dice.shuffle(makers)
            for make in makers:
                try:
                    served.append(await run_request(house.kernel, make(), _answers))
                except InvalidContext as error:
                    refused.append(error.field)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(BATCHES):
                    nursery.start_soon(batch, number)
        assert sorted(served) == sorted(f"user-{number}" for number in range(BATCHES * PAIRS))
        expected = [
            {"agent_context": "agent_context.plan"}.get(field, field) for field, _ in INVALID
        ] * BATCHES
        assert sorted(refused) == sorted(expected)
