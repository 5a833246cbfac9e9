"""Exact resumption over real sockets: whatever breaks when, a client sees every event once and in order."""

import json
import random
from contextlib import suppress

import pytest
import trio
import trio_websocket

RECONNECTS = 200
LOST = (trio_websocket.ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError)


class Cursor:
    """A client that follows the protocol: it subscribes first, and takes events as they come."""

    def __init__(self, thread_id: str) -> None:
        self.thread_id = thread_id
        self.seen: list[int] = []
        self.ended: set[str] = set()

    async def listen(self, user, stop_after: int, *, abort: bool) -> None:
        """Connect, subscribe after the last number, and break off after so many events."""
        async with user.socket() as socket:
            await socket.send(
                type="subscribe", thread_id=self.thread_id, after=self.seen[-1] if self.seen else 0
            )
            while stop_after > 0:
                frame = await socket.receive()
                if frame["type"] == "subscribed":
                    assert frame["recovered"]
                    continue
                assert frame["user_id"] == user.user_id
                self.seen.append(frame["seq"])
                if frame["type"] == "agent_completed":
                    self.ended.add(frame["run_id"])
                stop_after -= 1
            if abort:  # without a word, as a cable that is pulled
                await socket.connection._stream.aclose()


async def test_a_client_that_reconnects_at_random_moments_sees_every_event_once(server, alice):
    """Two hundred connections, each broken off after a random number of events, while runs go on."""
    thread = await alice.thread()
    seed = random.SystemRandom().getrandbits(32)
    dice = random.Random(seed)
    cursor = Cursor(thread)
    runs = 60
    order = json.dumps({"events": 30})

    async def talk():
        for _ in range(runs):
            await alice.run(thread, order, agent="load")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        connections = 0
        while len(cursor.ended) < runs:
            connections += 1
            left = runs * 33 - len(cursor.seen)
            wanted = min(left, dice.randint(1, 14)) if connections < RECONNECTS else left
            with suppress(*LOST):
                await cursor.listen(alice, wanted, abort=dice.random() < 0.5)
    assert connections >= RECONNECTS, f"seed {seed}: only {connections} connections"
    assert cursor.seen == list(range(1, runs * 33 + 1)), f"seed {seed}"


async def test_a_socket_that_only_listens_sees_every_event_once(server, alice):
    """It neither subscribes nor sends: events come from the moment of connecting."""
    thread = await alice.thread()
    async with alice.socket() as passive:
        for _ in range(3):
            await alice.run(thread, json.dumps({"events": 50}), agent="load")
        seen = []
        while len(seen) < 3 * 53:
            seen.append((await passive.receive())["seq"])
    assert seen == list(range(1, 3 * 53 + 1))


@pytest.mark.parametrize("events", [1, 700])
async def test_subscribing_in_the_middle_of_a_run_leaves_no_gap(server, alice, events):
    """The replay and what happens meanwhile join without a seam."""
    thread = await alice.thread()
    order = json.dumps({"events": events})
    async with alice.socket() as talker:
        for _ in range(4):
            await talker.send(type="user_message", thread_id=thread, content=order, agent="load")
        total = 4 * (events + 3)
        await talker.until("agent_started")
        for after in (0, 1, 3):
            async with alice.socket() as late:
                await late.send(type="subscribe", thread_id=thread, after=after)
                assert (await late.receive())["type"] == "subscribed"
                seen = [(await late.receive())["seq"] for _ in range(total - after)]
                assert seen == list(range(after + 1, total + 1))
