"""The root nursery: services in order, loud failures, and a drain in reverse."""

import os
import signal

import pytest
import trio
import trio.testing

from nurseries.errors import StartupFailed
from nurseries.server import Server
from nurseries.serving import Listener, SocketClosed
from tests.serving.house import make_app
from tests.serving.peer import UPGRADE, Peer


class Idle:
    """Work of which there is none."""

    async def wait_idle(self) -> None:
        await trio.lowlevel.checkpoint()

    def cancel_all(self, reason: str) -> None:
        """Cancel nothing."""


class Story:
    """What happened, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def service(self, name: str, *, fails_at_start: bool = False, fails: trio.Event | None = None):
        """Return a service that tells of its life."""

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            if fails_at_start:
                raise ZeroDivisionError(f"{name} could not start")
            self.told.append(f"{name} started")
            task_status.started()
            try:
                if fails is not None:
                    await fails.wait()
                    raise ZeroDivisionError(f"{name} failed")
                await trio.sleep_forever()
            finally:
                self.told.append(f"{name} ended")

        return run

    def listener(self, **options) -> Listener:
        async def websocket(handshake) -> None:
            try:
                await (await handshake.accept()).receive()
            except SocketClosed:
                pass
            finally:
                with trio.CancelScope(shield=True):  # what a request still has to say needs its services
                    await trio.testing.wait_all_tasks_blocked()
                self.told.append("socket ended")

        return Listener(http=make_app([]), websocket=websocket, **{"port": 0, **options})

    def ready(self, urls: list[str]) -> None:
        self.told.append("listening")
        self.urls = urls


def only(error: type[BaseException], match: str | None = None):
    """Expect this error and no other, in whatever groups."""
    return pytest.RaisesGroup(
        pytest.RaisesExc(error, match=match), flatten_subgroups=True, allow_unwrapped=True
    )


async def test_services_start_before_the_listener_and_end_after_it():
    """Each before the next one, and in reverse."""
    story, server = Story(), Server(drain_seconds=0)

    def ready(urls: list[str]) -> None:
        story.ready(urls)
        server.stop()

    await server.run([story.service("a"), story.service("b")], story.listener(), Idle(), ready=ready)
    assert story.told == ["a started", "b started", "listening", "b ended", "a ended"]
    assert server.state == "stopped"


async def test_a_service_that_cannot_start_is_the_servers_own_error():
    """Nobody ever hears that it listens, and what had been started is ended."""
    story = Story()
    services = [story.service("a"), story.service("b", fails_at_start=True), story.service("c")]
    with only(ZeroDivisionError, "b could not start"):
        await Server().run(services, story.listener(), Idle(), ready=story.ready)
    assert story.told == ["a started", "a ended"]


async def test_a_port_that_is_taken_is_the_servers_own_error():
    """The same for the listener."""
    story = Story()
    async with trio.open_nursery() as nursery:
        (taken,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = taken.socket.getsockname()[1]
        with only(StartupFailed, "in use"):
            await Server().run([story.service("a")], story.listener(port=port), Idle(), ready=story.ready)
        await taken.aclose()
        nursery.cancel_scope.cancel()
    assert story.told == ["a started", "a ended"]


async def test_a_service_that_fails_takes_the_server_down_with_its_own_error():
    """Half a server is worse than none: sockets are closed, everything ends, and the error comes out."""
    story, fails, listening = Story(), trio.Event(), trio.Event()

    def ready(urls: list[str]) -> None:
        story.ready(urls)
        listening.set()

    async def use() -> None:
        await listening.wait()
        async with await trio.open_tcp_stream("127.0.0.1", int(story.urls[0].rpartition(":")[2])) as stream:
            peer = Peer(stream)
            await peer.send(UPGRADE + b"\r\n")
            assert (await peer.head()).startswith(b"HTTP/1.1 101")
            fails.set()
            assert await peer.close_code() == 1012

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            with only(ZeroDivisionError, "b failed"):
                services = [story.service("a"), story.service("b", fails=fails), story.service("c")]
                await Server().run(services, story.listener(), Idle(), ready=ready)
    assert story.told[:4] == ["a started", "b started", "c started", "listening"]
    assert story.told[4:] == ["b ended", "socket ended", "c ended", "a ended"], (
        "none before what relies on it"
    )


async def test_a_signal_before_it_is_ready_ends_it_and_it_never_listens():
    """Whatever service it was waiting for."""
    story, server = Story(), Server()

    async def never_starts(*, task_status: trio.TaskStatus[None]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()

    with trio.fail_after(60), only(KeyboardInterrupt):
        await server.run([server.stop_on_signals, never_starts], story.listener(), Idle(), ready=story.ready)
    assert story.told == []


async def test_a_drain_that_is_hurried_is_told_apart():
    """The second signal leaves out the waiting for work, and the server says so by how it ends."""
    story, server = Story(), Server(drain_seconds=600)

    class Busy(Idle):
        cancelled = trio.Event()

        async def wait_idle(self) -> None:
            if not self.cancelled.is_set():
                os.kill(os.getpid(), signal.SIGTERM)  # the second: the first began this
            await self.cancelled.wait()

        def cancel_all(self, reason: str) -> None:
            story.told.append(reason)
            self.cancelled.set()

    def ready(urls: list[str]) -> None:
        story.ready(urls)
        os.kill(os.getpid(), signal.SIGTERM)

    with trio.fail_after(60), only(KeyboardInterrupt):
        await server.run([server.stop_on_signals], story.listener(), Busy(), ready=ready)
    assert story.told == ["listening", "shutdown"]


async def test_a_request_that_cannot_be_ended_does_not_hold_up_the_end_for_ever(autojump_clock):
    """One that swallows its cancellation is given up with its name, once everybody else has left."""
    story, released, given_up = Story(), trio.Event(), []

    async def deaf() -> None:
        while not released.is_set():
            with trio.CancelScope(shield=True):
                await trio.sleep(1)

    def give_up(names) -> None:
        given_up.append((trio.current_time() - began, names))
        released.set()

    server = Server(drain_seconds=7, give_up=give_up)

    def ready(urls: list[str]) -> None:
        server.requests.start_soon(deaf, name="the deaf one")
        server.stop()

    began = trio.current_time()
    await server.run([story.service("a")], story.listener(), Idle(), ready=ready)
    ((seconds, names),) = given_up
    assert (round(seconds), names) == (25, ["the deaf one"])
    assert story.told == ["a started", "a ended"]
