"""Two scopes with nothing in common, and those that have."""

from typing import ClassVar

import pytest
import trio

from nurseries.budgets import Budget, BudgetLimits
from nurseries.context import UserContext
from nurseries.events import MemoryLog, Streams
from nurseries.request import Kernel, open_request
from nurseries.testing import assert_isolated


class Shared:
    """An agent that keeps its users' words in its class."""

    conversations: ClassVar = {}


class Own:
    """An agent that keeps them in itself."""

    def __init__(self):
        self.conversations = {}


def test_objects_of_their_own_pass():
    """What each makes for itself is isolated, also where it is equal."""
    assert_isolated(Own(), Own())


def test_a_dict_of_the_class_is_found_with_the_way_from_both_sides():
    """The message names the attribute, once from each."""
    with pytest.raises(AssertionError, match="in reach of both, and can change: 1") as failure:
        assert_isolated(Shared(), Shared())
    message = str(failure.value)
    assert "- dict, held as class attribute" in message
    assert message.count("class attribute conversations: dict") == 2
    assert "    a: Shared" in message
    assert "    b: Shared" in message


async def test_requests_of_two_users(pool):
    """Two open requests over one kernel pass; with one list in local variables of both they do not."""
    streams = Streams()
    kernel = Kernel(pool, MemoryLog(streams), Budget(BudgetLimits()))

    async def work(name, things, *, task_status):
        context = UserContext(user_id=name, thread_id=f"{name}-1", run_id=f"{name}-1-1")
        async with open_request(kernel, context) as request:
            task_status.started(request)
            things.append(name)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        ann = await nursery.start(work, "ann", [])
        assert_isolated(ann, await nursery.start(work, "bob", []))
        common = []
        ann = await nursery.start(work, "ann", common)
        bob = await nursery.start(work, "bob", common)
        with pytest.raises(AssertionError, match="local things: list"):
            assert_isolated(ann, bob)
        nursery.cancel_scope.cancel()
