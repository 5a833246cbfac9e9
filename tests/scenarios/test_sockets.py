"""Sockets: each carries its user's events and no others', whatever is wrong with the routing or with a neighbour."""

import json
from contextlib import AsyncExitStack

import attrs
import pytest
import trio
import trio_websocket

import app.main
from nurseries.events import Streams, delivery_checksum
from tests.scenarios.agents import Meeting

ENDS = ("agent_completed", "run_failed", "run_cancelled")


def order(events, size=32):
    """Return what tells the load agent to say so many pieces of so many bytes; its run has three events more."""
    return json.dumps({"events": events, "delta_bytes": size, "queries": 1})


# -- many sockets --------------------------------------------------------------------------------------


async def test_eight_users_with_three_sockets_each_hear_their_own_events_on_all_three(serving):
    """Runs of all users at once: the three sockets of a user get the same numbers in the same order, and no others."""
    everybody, quiet, heard = Meeting(24), Meeting(8), {}

    async def listen(user, thread):
        async with user.socket() as socket:
            await everybody.join(user)
            await quiet.complete()
            # All events are published: what comes before this answer is all that was sent of them.
            await socket.send(type="ping")
            frames = (await socket.until("pong"))[:-1]
        heard.setdefault(user.user_id, []).append(frames)
        assert {(frame["user_id"], frame["thread_id"]) for frame in frames} <= {(user.user_id, thread)}

    async def talk(user, thread):
        await everybody.complete()
        for _ in range(3):
            assert (await user.run(thread, order(10), agent="load"))["status"] == "completed"
        await quiet.join(user)

    async with serving() as served, AsyncExitStack() as stack:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    user = await stack.enter_async_context(served.user())
                    thread = await user.thread()
                    for _ in range(3):
                        nursery.start_soon(listen, user, thread)
                    nursery.start_soon(talk, user, thread)
    assert len(heard) == 8
    for three in heard.values():
        assert len(three) == 3
        assert three[0] == three[1] == three[2]
        assert [frame["seq"] for frame in three[0]] == list(range(1, 3 * (10 + 3) + 1))


async def test_a_logout_ends_its_own_sockets_and_nobody_elses(serving):
    """Of six users one leaves: both their sockets close with 4401 at once, and the others' go on."""
    ready, left, heard = Meeting(7), trio.Event(), {}

    async def listen(user):
        async with user.socket() as socket:
            await ready.join(user)
            await left.wait()
            try:
                await socket.send(type="ping")
                answer = (await socket.receive())["type"]
            except trio_websocket.ConnectionClosed as closed:
                answer = closed.reason.code
            heard.setdefault(user.user_id, []).append(answer)

    async with serving() as served, AsyncExitStack() as stack:
        users = [await stack.enter_async_context(served.user()) for _ in range(6)]
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for user in (users[0], *users):
                    nursery.start_soon(listen, user)
                await ready.complete()
                assert (await users[0].http.post("/v1/auth/logout")).status_code == 204
                left.set()
    assert heard == {user.user_id: ["pong"] for user in users} | {users[0].user_id: [4401, 4401]}


# -- corrupted routing ---------------------------------------------------------------------------------


EVENTS = 12


class _Crossed(Streams):
    """Every third event of a thread finds the listeners of two users exchanged."""

    def __init__(self):
        super().__init__()
        self.misrouted = {}
        self.named = set()

    def publish(self, event):
        if event.seq % 3:
            super().publish(event)
        else:
            self.misrouted.setdefault(event.user_id, []).append(event.seq)
            self.misroute(event)

    def misroute(self, event):
        table, other = self._outboxes, self.neighbour(event)
        table[event.user_id], table[other] = table[other], table[event.user_id]
        self.offer(event)
        table[event.user_id], table[other] = table[other], table[event.user_id]

    def offer(self, event):
        self.named.add(event.user_id)
        super().publish(event)

    def neighbour(self, event):
        users = sorted(self._outboxes)
        return users[(users.index(event.user_id) + 1) % len(users)]


class _Renamed(_Crossed):
    """Every third event says that it is somebody else's."""

    def misroute(self, event):
        self.offer(attrs.evolve(event, user_id=self.neighbour(event)))


class _Signed(_Crossed):
    """Every third event goes astray, with the checksum that it would have if it belonged there."""

    def misroute(self, event):
        checksum = delivery_checksum(self.neighbour(event), event.thread_id, event.run_id)
        super().misroute(attrs.evolve(event, delivery_checksum=checksum))


@attrs.frozen
class Corruption:
    """Six sessions in whose server the routing went wrong."""

    served: object
    streams: _Crossed
    users: list
    threads: dict
    live: dict
    sockets: dict

    def missed(self):
        """Return the numbers that each user was not sent, by the gaps in what they were."""
        whole = set(range(1, 9 + 3 + 1))
        return {
            user: sorted(whole - {frame["seq"] for frame in frames}) for user, frames in self.live.items()
        }


WRONG = {"the listeners": _Crossed, "the user of an event": _Renamed, "its checksum too": _Signed}


@pytest.fixture(params=WRONG.values(), ids=WRONG.keys())
async def corruption(request, serving, monkeypatch):
    """Six users with a socket each have a run at the same time, while every third event is routed wrong."""
    monkeypatch.setattr(app.main, "Streams", request.param)
    async with serving() as served, AsyncExitStack() as stack:
        users = [await stack.enter_async_context(served.user()) for _ in range(6)]
        threads = {user.user_id: await user.thread() for user in users}
        sockets = {user.user_id: await stack.enter_async_context(user.socket()) for user in users}
        live = {}
        for socket in sockets.values():
            await socket.send(type="ping")
            assert await socket.receive() == {"type": "pong"}

        async def talk(user):
            outcome = await user.run(threads[user.user_id], order(EVENTS - 3, 64), agent="load")
            assert outcome["status"] == "completed"

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for user in users:
                    nursery.start_soon(talk, user)
            for user_id, socket in sockets.items():
                # All events are published: what comes before this answer is all that was sent of them.
                await socket.send(type="ping")
                live[user_id] = (await socket.until("pong"))[:-1]
        yield Corruption(served, served.vitals.streams, users, threads, live, sockets)


async def test_corrupted_routing_is_detected(corruption):
    """Every misrouted event is counted, no other is, and the server's health is critical."""
    status = corruption.served.vitals.status()
    assert status["isolation"]["misdeliveries_prevented"] == 6 * EVENTS // 3
    assert status["health"] == "critical"


async def test_corrupted_routing_is_written_to_the_audit_trail(corruption):
    """Every misrouted event is in the trail, under the name of the user whose event it says it is."""
    misdelivered = await corruption.served.trail("misdelivery_prevented")
    counted = corruption.served.vitals.trail.statistics().counted
    assert sum(count for _, _, count in misdelivered) + counted == 6 * EVENTS // 3
    assert {user_id for user_id, _, _ in misdelivered} == corruption.streams.named


async def test_corrupted_routing_delivers_nothing_to_anybody_else(corruption):
    """Not one frame on any socket is another user's, and those that were misrouted are the ones that are missing."""
    for user in corruption.users:
        for frame in corruption.live[user.user_id]:
            assert (frame["user_id"], frame["thread_id"]) == (user.user_id, corruption.threads[user.user_id])
            assert frame["payload"].get("text", user.user_id).startswith(user.user_id)
    assert corruption.missed() == corruption.streams.misrouted


async def test_corrupted_routing_is_recovered_from(corruption):
    """Who sees a gap asks for the thread from before it, on the same socket, and has everything once and in order."""
    assert corruption.missed()
    for user_id, numbers in corruption.missed().items():
        cursor, socket = numbers[0] - 1, corruption.sockets[user_id]
        await socket.send(type="subscribe", thread_id=corruption.threads[user_id], after=cursor)
        subscribed = await socket.receive()
        assert (subscribed["type"], subscribed["recovered"]) == ("subscribed", True)
        await socket.send(type="ping")
        rest = (await socket.until("pong"))[:-1]
        assert [frame["seq"] for frame in rest] == list(range(cursor + 1, EVENTS + 1))
        assert {frame["user_id"] for frame in rest} == {user_id}


# -- a socket that does not keep up --------------------------------------------------------------------

BURST = 50
TOTAL = BURST + 3


@pytest.fixture
async def overflow(serving):
    """Outboxes of ten; one user's socket does not read while a burst of fifty is for it, and three others chat on."""
    async with serving(outbox_events=10) as served, AsyncExitStack() as stack:
        users = [await stack.enter_async_context(served.user()) for _ in range(4)]
        slow, *others = users
        threads = {user.user_id: await user.thread() for user in users}
        socket = await stack.enter_async_context(slow.socket(receive_buffer=4096))
        await socket.send(type="ping")
        assert await socket.receive() == {"type": "pong"}
        neighbours = []

        async def chat(user):
            async with user.socket() as neighbour:
                await everybody.join(user)
                frames = []
                for _ in range(5):
                    await user.run(threads[user.user_id], order(2), agent="load")
                    frames += await neighbour.until(*ENDS)
                neighbours.append((user, frames))

        everybody = Meeting(4)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for user in others:
                    nursery.start_soon(chat, user)
                await everybody.join(slow)
                outcome = await slow.run(threads[slow.user_id], order(BURST, 20_000), agent="load")
        yield slow, threads, socket, outcome, neighbours


async def test_a_slow_socket_is_noticed_by_nobody_else(overflow):
    """The others' runs end, and their sockets bring every event in time; the slow user's own run is not held up."""
    _, threads, _, outcome, neighbours = overflow
    assert outcome["status"] == "completed"
    assert len(neighbours) == 3
    for user, frames in neighbours:
        assert [frame["seq"] for frame in frames] == list(range(1, 5 * (2 + 3) + 1))
        assert {frame["thread_id"] for frame in frames} == {threads[user.user_id]}


async def test_a_slow_socket_is_closed_with_1013_and_resumes_with_nothing_lost(overflow):
    """It gets an unbroken beginning and its code; the next socket asks from there and gets exactly the rest."""
    slow, threads, socket, _, _ = overflow
    seen = []
    with pytest.raises(trio_websocket.ConnectionClosed) as closed, trio.fail_after(30):
        while len(seen) < TOTAL:
            seen.append((await socket.receive())["seq"])
    assert closed.value.reason.code == 1013
    assert seen == list(range(1, len(seen) + 1))
    async with slow.socket() as again:
        await again.send(type="subscribe", thread_id=threads[slow.user_id], after=len(seen))
        assert (await again.receive())["recovered"]
        rest = [(await again.receive())["seq"] for _ in range(TOTAL - len(seen))]
    assert rest == list(range(len(seen) + 1, TOTAL + 1))
