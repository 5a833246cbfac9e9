"""Threads that hang are held to their user's account until they end."""

import gc
import threading

import pytest
import trio

from app.tools.threads import ToolThreads


@pytest.fixture
def stuck():
    """Give a function that hangs in its thread, deaf to cancellation, until the test is over."""
    release = threading.Event()
    yield release.wait
    release.set()


async def _abandon(threads, user_id, function):
    """Call, and cancel the call once it waits for the thread or for a token."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run, user_id, function)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_an_abandoned_thread_keeps_its_token(stuck):
    """A user whose threads hang has none left; another user does not notice."""
    threads = ToolThreads(total=4, per_user=2)
    for _ in range(2):
        await _abandon(threads, "greedy", stuck)
    assert threads.in_use == 2
    await _abandon(threads, "greedy", lambda: pytest.fail("there was no thread left for it"))
    assert await threads.run("modest", lambda: 42) == 42
    assert threads.in_use == 2


async def test_tokens_and_users_come_back_when_the_thread_ends():
    """Once the function returns, its token is free, and a user without threads is forgotten."""
    release = threading.Event()
    threads = ToolThreads(total=2, per_user=1)
    await _abandon(threads, "slow", release.wait)
    assert (threads.in_use, threads.users) == (1, 1)
    release.set()
    with trio.fail_after(5):
        assert await threads.run("slow", lambda: "next") == "next"
    gc.collect()
    assert (threads.in_use, threads.users) == (0, 0)


async def test_waiting_for_the_common_limit_gives_the_own_one_back():
    """A wait that is cancelled between the two limits hands the user's token to the next of their calls."""
    release = threading.Event()
    threads = ToolThreads(total=1, per_user=1)
    await _abandon(threads, "first", release.wait)
    answers = []
    async with trio.open_nursery() as nursery:
        ahead = trio.CancelScope()

        @nursery.start_soon
        async def _():
            with ahead:
                await threads.run("second", lambda: answers.append("ahead"))

        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(threads.run, "second", lambda: answers.append("behind"))
        await trio.testing.wait_all_tasks_blocked()
        ahead.cancel()
        release.set()
        nursery.cancel_scope.deadline = trio.current_time() + 5
    assert answers == ["behind"]
    gc.collect()
    assert (threads.in_use, threads.users) == (0, 0)
