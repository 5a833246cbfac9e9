"""Requests inside requests, and what a request's nursery lets nobody reach."""

import pytest
import trio

from nurseries.budgets import Budget, BudgetLimits
from nurseries.context import MAX_DEPTH, DepthExceeded, UserContext
from nurseries.errors import InvalidContext, RequestEnded
from nurseries.events import MemoryLog, Streams
from nurseries.ids import new_id
from nurseries.postgres.pool import open_pool
from nurseries.request import Failure, Kernel, contain, open_child, open_request, run_request


@pytest.fixture
async def streams():
    return Streams()


@pytest.fixture
async def kernel(database, streams):
    """A kernel in which every user may have one request."""
    async with open_pool(database.request) as pool:
        yield Kernel(pool, MemoryLog(streams), Budget(BudgetLimits(total=1, per_user=1, wait_seconds=0.1)))


def context(user_id="ann"):
    return UserContext(user_id=user_id, thread_id=f"{user_id}-1", run_id=new_id())


async def test_a_child_is_of_the_same_user_and_has_all_else_of_its_own(kernel, streams):
    """Ids that name the parent, a database and an emitter that end with it, events in the parent's thread."""
    with streams.listen("ann") as outbox:
        async with open_request(kernel, context()) as parent:
            await parent.events.emit("one", {})
            async with open_child(parent, "part") as child:
                assert child.context.user_id == "ann"
                assert child.context.parent_request_id == parent.context.request_id
                assert child.context.run_id.startswith(f"{parent.context.run_id}_part_")
                assert child.context.operation_depth == 1
                assert await child.database.fetch("SELECT current_setting('app.user_id')") == [("ann",)]
                await child.events.emit("two", {})
                assert len(kernel.live.requests) == 2
            with pytest.raises(RequestEnded):
                await child.database.fetch("SELECT 1")
            with pytest.raises(RequestEnded):
                await child.events.emit("late", {})
            await parent.database.fetch("SELECT 1")
            await parent.events.emit("three", {})
        events = outbox.take_nowait()
    assert [(event.type, event.seq) for event in events] == [("one", 1), ("two", 2), ("three", 3)]
    assert [event.run_id for event in events] == [
        parent.context.run_id,
        child.context.run_id,
        parent.context.run_id,
    ]
    assert kernel.live.requests == {}


async def test_children_take_no_place_in_the_budget(kernel):
    """A user whose only place the parent holds can have children at any depth, and not another request."""
    async with open_request(kernel, context()) as parent:
        async with open_child(parent, "a") as child, open_child(child, "b") as grandchild:
            assert kernel.budget.statistics().in_use == 1
            assert grandchild.context.parent_request_id == child.context.request_id
    assert kernel.budget.statistics().in_use == 0


async def test_depth_is_bounded(kernel):
    """An operation in an operation, and so on, ends with an error that says so."""

    async def deeper(request, depth=0):
        async with open_child(request, "deeper") as child:
            assert child.context.operation_depth == depth + 1
            await deeper(child, depth + 1)

    async with open_request(kernel, context()) as parent:
        with pytest.raises(DepthExceeded):
            await deeper(parent)
        assert len(kernel.live.requests) == 1
    assert MAX_DEPTH == 8


async def test_an_ended_request_has_no_children(kernel):
    """Whoever kept a request cannot open another one with it."""
    async with open_request(kernel, context()) as parent:
        pass
    with pytest.raises(RequestEnded):
        async with open_child(parent, "late"):
            pass


async def test_an_operation_has_a_short_name(kernel):
    """What would not fit into a run id is refused before anything is opened."""
    async with open_request(kernel, context()) as parent:
        with pytest.raises(InvalidContext):
            async with open_child(parent, "two words"):
                pass
        assert len(kernel.live.requests) == 1


async def test_a_childs_tasks_end_with_it(kernel):
    """When the block is left, what was started in the child has ended, though the parent goes on."""
    ended = []

    async def linger():
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        ended.append("linger")

    async with open_request(kernel, context()) as parent:
        async with open_child(parent, "part") as child:
            child.nursery.start_soon(linger)
        assert ended == ["linger"]


async def test_a_nursery_leads_to_no_other_task(kernel):
    """Its public attributes start tasks, and that is all."""
    async with open_request(kernel, context()) as request:
        public = {name for name in dir(request.nursery) if not name.startswith("_")}
        assert public == {"start", "start_soon"}

        async def greet(name, *, task_status):
            task_status.started(f"hello {name}")

        assert await request.nursery.start(greet, "ann") == "hello ann"


async def test_a_cancellation_that_was_kept_is_a_fault(kernel):
    """Raised again when nobody cancels, it would climb to the root and end the server."""
    kept = []

    async def keep():
        with trio.move_on_after(0):
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                kept.append(cancelled)
                raise

    async def engine(_request=None):
        await keep()
        raise kept[0]

    for failure in (await run_request(kernel, context(), engine), await contain(context(), engine)):
        assert failure == Failure("internal", failure.message)


async def test_a_cancellation_from_outside_passes_the_barrier(kernel):
    """Whoever cancels a request is told by Trio that it worked."""

    async def engine(_request):
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        scope.cancel()
        await run_request(kernel, context(), engine)
    assert scope.cancelled_caught


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), ZeroDivisionError()])
async def test_whatever_is_raised_is_contained(raised):
    """The barrier returns a failure that tells nothing of ours."""

    async def work():
        raise raised

    assert (await contain(context(), work)).code == "internal"
