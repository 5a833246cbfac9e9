"""Sockets that do not keep up, and sockets that are many: each is its user's own affair."""

import gc
import json
import weakref

import pytest
import trio
import trio.testing
import trio_websocket

from nurseries.session import Session
from tests.fixtures.house import running_server, signed_up

EVENTS = 120
TOTAL = EVENTS + 3
ORDER = json.dumps({"events": EVENTS, "delta_bytes": 8000})


async def test_a_socket_that_does_not_read_is_closed_and_resumes_with_nothing_lost(database):
    """It gets an unbroken prefix and 1013; the same user's other socket and another user do not notice."""
    async with (
        running_server(database.owner, outbox_events=10) as url,
        signed_up(url) as alice,
        signed_up(url) as bob,
        bob.socket() as stranger,
    ):
        thread, other = await alice.thread(), await bob.thread()
        async with alice.socket(receive_buffer=4096) as slow:
            await slow.send(type="ping")
            assert (await slow.receive())["type"] == "pong"
            assert (await alice.run(thread, ORDER, agent="load"))["status"] == "completed"
            assert (await bob.run(other, "time"))["status"] == "completed"
            assert (await stranger.until("agent_completed"))[-1]["user_id"] == bob.user_id
            seen = []
            with pytest.raises(trio_websocket.ConnectionClosed) as closed, trio.fail_after(60):
                while True:
                    seen.append((await slow.receive())["seq"])
        assert closed.value.reason.code == 1013
        assert seen == list(range(1, len(seen) + 1))
        assert len(seen) < TOTAL
        async with alice.socket() as again:
            await again.send(type="subscribe", thread_id=thread, after=seen[-1])
            assert (await again.receive())["recovered"]
            rest = [(await again.receive())["seq"] for _ in range(TOTAL - seen[-1])]
        assert rest == list(range(seen[-1] + 1, TOTAL + 1))


async def test_nothing_is_kept_of_sockets_that_closed(database):
    """Sessions are gone without the collector, and no task, place or listener of theirs is left."""
    async with running_server(database.owner) as url, signed_up(url) as user:
        sessions = weakref.WeakSet()
        made = Session.__init__

        def remember(self, *arguments, **options):
            sessions.add(self)
            made(self, *arguments, **options)

        Session.__init__ = remember
        gc.collect()
        gc.disable()
        try:
            before = None
            for _ in range(3):  # the first round leaves the client's idle HTTP connections behind
                async with trio.open_nursery() as nursery:
                    for _ in range(10):
                        nursery.start_soon(_open_and_close, user)
                with trio.fail_after(
                    60
                ):  # services come and go with tasks of their own: what stays is a leak
                    while sessions or (before is not None and _tasks() > before):
                        await trio.testing.wait_all_tasks_blocked()
                before = before or _tasks()
        finally:
            gc.enable()
            Session.__init__ = made


def _tasks():
    return trio.lowlevel.current_statistics().tasks_living


async def _open_and_close(user):
    thread = await user.thread()
    async with user.socket() as socket:
        await socket.send(type="user_message", thread_id=thread, content="time")
        await socket.until("agent_completed")
