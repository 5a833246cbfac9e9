"""One connection's bytes: whatever has become of it, no call of it freezes the others."""

import socket

import pytest
import trio
import trio.testing

from nurseries.serving.wire import SocketWire, WireBroken


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def test_every_call_is_a_checkpoint(ends):
    """With somebody at the other end, without, and once this end is closed."""
    ours, theirs = ends
    wire = SocketWire(ours, 1.0)
    with trio.testing.assert_checkpoints():
        await wire.send(b"hello")
    theirs.send(b"hello")
    with trio.testing.assert_checkpoints():
        assert await wire.receive() == b"hello"
    theirs.close()
    with trio.testing.assert_checkpoints():
        await wire.wait_end()
    with trio.testing.assert_checkpoints(), pytest.raises(WireBroken):
        await wire.send(b"hello")
    assert wire.broken
    for call in (wire.receive, lambda: wire.send(b"hello")):
        with trio.testing.assert_checkpoints(), pytest.raises(WireBroken):
            await call()
    with trio.testing.assert_checkpoints():
        await wire.wait_end()


async def test_who_waits_for_the_end_is_told_that_this_side_has_closed(ends):
    """It would wait for ever otherwise: a closed descriptor has no events."""
    wire = SocketWire(ends[0], 1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.wait_end)
        await trio.testing.wait_all_tasks_blocked()
        wire.abort()


async def test_sends_of_several_tasks_do_not_mix(ends):
    """Each goes out whole, though none fits into the system's buffers."""
    ours, theirs = ends
    wire = SocketWire(ours, 30.0)
    messages = [bytes((letter,)) * 1_000_000 for letter in b"abc"]
    received = b""
    async with trio.open_nursery() as nursery:
        for message in messages:
            nursery.start_soon(wire.send, message)
        while len(received) < 3_000_000:
            await trio.lowlevel.wait_readable(theirs)
            received += theirs.recv(1 << 20)
    assert sorted(received[start : start + 1_000_000] for start in range(0, 3_000_000, 1_000_000)) == messages


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_send_that_is_cut_short_breaks_it(ends, how, autojump_clock):
    """The peer has a part of it, so nothing may follow."""
    wire = SocketWire(ends[0], 5.0)
    with trio.move_on_after(1.0 if how == "cancelled" else 10.0):
        with pytest.raises(WireBroken):
            await wire.send(bytes(10_000_000))
        assert how == "late"
    assert trio.current_time() == pytest.approx(1.0 if how == "cancelled" else 5.0, abs=0.1)
    assert wire.broken
    with pytest.raises(WireBroken):
        await wire.send(b"more")
