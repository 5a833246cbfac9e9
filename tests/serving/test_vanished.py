"""A peer that vanishes while it is sent to: the loop that sends ends or waits, and the processor is at rest.

Rest is told by the scheduler, not by a clock: no task runs, and few steps were taken to get there.
"""

from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from nurseries.serving import Handshake, ServingLimits, SocketClosed
from tests.serving.faults import Faults, faulty
from tests.serving.house import echo, serving
from tests.serving.peer import GET, UPGRADE, Peer, frame

QUIET_SECONDS = 0.2
TOO_MANY = 100_000
STEPS = 5_000  # a loop that sends without waiting takes as many in a few hundredths of a second


class Steps(trio.abc.Instrument):
    """Counts what the scheduler does."""

    def __init__(self) -> None:
        self.taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += 1


async def comes_to_rest() -> None:
    """Return when no task has anything to do; a task that is always busy fails it."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    with trio.fail_after(30):
        await trio.testing.wait_all_tasks_blocked(QUIET_SECONDS)
    trio.lowlevel.remove_instrument(steps)
    assert steps.taken < STEPS


ASK = {
    "http": GET + b"\r\n",
    "websocket": UPGRADE + b"\r\n" + frame(b"flood me"),
}


async def endless(_scope, _receive, send) -> None:
    """Send for ever, and look at nothing else."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})


@pytest.mark.parametrize("how", ["close", "reset", "black hole"])
@pytest.mark.parametrize("what", ASK)
async def test_send_loop_to_a_vanished_peer_comes_to_rest(what, how):
    """Whichever way it goes, and also where nobody is told: then the loop waits for the write deadline."""
    async with (
        serving(ServingLimits(write_seconds=600, close_seconds=0.2), http=endless) as house,
        faulty(house.port, Faults()) as network,
        AsyncExitStack() as stack,
    ):
        port = network.port if how == "black hole" else house.port
        stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
        peer = Peer(stream)
        await peer.send(ASK[what])
        await peer.take(300_000)
        if how == "black hole":
            network.faults = Faults(black_hole=True)
        elif how == "reset":
            await peer.reset()
        else:
            await stream.aclose()
        await comes_to_rest()
        assert house.statistics.connections == (2 if how == "black hole" else 1)


@pytest.mark.parametrize("what", ASK)
async def test_handler_that_sends_on_regardless_freezes_nobody(what):
    """One that swallows what tells it that nobody listens has only itself to blame: every send lets others run."""
    swallowed = 0

    def swallow() -> None:
        nonlocal swallowed
        swallowed += 1
        if swallowed > TOO_MANY:
            raise AssertionError("nobody else has run meanwhile")

    async def http(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            try:
                await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
            except OSError:
                swallow()

    async def websocket(handshake: Handshake) -> None:
        if handshake.path == "/ws":
            await echo(handshake)
            return
        socket = await handshake.accept()
        while True:
            try:
                await socket.send([b"x" * 1000])
            except SocketClosed:
                swallow()

    async with serving(http=http, websocket=websocket) as house, house.websocket() as neighbour:
        async with house.connect() as peer:
            await peer.send(ASK[what].replace(b"/ws", b"/deaf"))
            await peer.take(10_000)
        await house.wait_for(lambda: swallowed > 100)
        before = swallowed
        with trio.fail_after(30):
            assert await neighbour.echo(b"still served") == b"still served"
        await house.wait_for(lambda: swallowed > before)
