"""Events: made for one user, delivered to that user's listeners, bounded, and looked at once more before they leave."""

import hashlib
import json

import attrs
import pytest
import trio
import trio.testing

from nurseries.context import UserContext
from nurseries.errors import Misdelivery, RequestEnded
from nurseries.events import Emitter, MemoryLog, Origin, Streams, delivery_checksum, verify


def context(user: str = "u-1", thread: str = "t-1", run: str = "r-1") -> UserContext:
    return UserContext(user_id=user, thread_id=thread, run_id=run)


def event(user: str = "u-1", seq: int = 1, size: int = 0):
    return Origin.of(context(user)).event("message_delta", seq, {"text": "x" * size})


def test_the_envelope_is_the_protocols():
    """Every field, its form, and the checksum over the three ids."""
    made = Origin.of(context()).event("message_delta", 7, {"text": "hällo"})
    envelope = json.loads(made.data)
    expected = hashlib.sha256(b"u-1:t-1:r-1").hexdigest()[:16]
    assert envelope.pop("timestamp").endswith("Z")
    assert envelope == {
        "type": "message_delta",
        "event_id": "t-1:7",
        "seq": 7,
        "user_id": "u-1",
        "thread_id": "t-1",
        "run_id": "r-1",
        "payload": {"text": "hällo"},
        "delivery_checksum": expected,
    }
    assert made.delivery_checksum == delivery_checksum("u-1", "t-1", "r-1") == expected


async def test_events_reach_the_listeners_of_their_user_only():
    """Two listeners of one user get it, another user's gets nothing."""
    streams = Streams()
    with streams.listen("u-1") as mine, streams.listen("u-1") as also_mine, streams.listen("u-2") as other:
        emitted = await Emitter(context(), MemoryLog(streams)).emit("agent_started", {})
        assert await mine.take() == [emitted]
        assert await also_mine.take() == [emitted]
        assert other.take_nowait() == []
    assert (streams.users, streams.listeners) == (0, 0)


async def test_a_thread_is_numbered_from_one_without_a_gap():
    """Each thread has numbers of its own."""
    log = MemoryLog(Streams())
    first, second = Emitter(context(), log), Emitter(context(thread="t-2", run="r-2"), log)
    numbers = [(await emitter.emit("x", {})).seq for emitter in (first, first, second, first, second)]
    assert numbers == [1, 2, 1, 3, 2]


async def test_a_closed_emitter_says_nothing_more():
    """After the end of a request nothing of it follows."""
    emitter = Emitter(context(), MemoryLog(Streams()))
    emitter.close()
    with pytest.raises(RequestEnded):
        await emitter.emit("x", {})


async def test_an_outbox_that_overflows_keeps_an_unbroken_prefix_and_then_ends():
    """Ten fit, fifty come: the first ten are delivered, nothing after them, and the end is visible."""
    streams = Streams()
    with streams.listen("u-1", events=10) as slow, streams.listen("u-1") as fast:
        for seq in range(1, 51):
            streams.publish(event(seq=seq))
        assert slow.overflowed
        assert [item.seq for item in await slow.take()] == list(range(1, 11))
        with pytest.raises(trio.EndOfChannel):
            await slow.take()
        assert [item.seq for item in await fast.take()] == list(range(1, 51))


async def test_an_outbox_is_bounded_in_bytes_too():
    """Few large events overflow it as many small ones do; emptying it makes room."""
    with Streams().listen("u-1", size=10_000) as outbox:
        outbox.offer(event(seq=1, size=6_000))
        outbox.take_nowait()
        outbox.offer(event(seq=2, size=6_000))
        assert not outbox.overflowed
        outbox.offer(event(seq=3, size=6_000))
        assert outbox.overflowed
        assert [item.seq for item in await outbox.take()] == [2]


async def test_an_answer_waits_for_room_instead_of_overflowing():
    """Whoever asks faster than they read waits for themselves."""
    with Streams().listen("u-1", events=1) as outbox:
        await outbox.send(b"first")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.send, b"second")
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks, "the second waits"
            assert await outbox.take() == [b"first", b"second"]
        assert not outbox.overflowed


def test_the_last_look_lets_a_users_own_event_pass():
    """The ordinary case."""
    verify(event(), "u-1")


@pytest.mark.parametrize(
    "corrupt",
    [
        {"user_id": "u-2"},
        {"thread_id": "t-2"},
        {"run_id": "r-2"},
        {"delivery_checksum": "0" * 16},
    ],
)
def test_the_last_look_stops_what_was_corrupted_on_the_way(corrupt):
    """Any id that changed after the event was made, or a checksum of other ids."""
    with pytest.raises(Misdelivery):
        verify(attrs.evolve(event(), **corrupt), "u-1")


def test_the_last_look_stops_another_users_event():
    """However well it is formed."""
    with pytest.raises(Misdelivery):
        verify(event("u-2"), "u-1")
