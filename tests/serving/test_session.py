"""The session and its writer on a real socket: what waits, what is answered, and when the peer's end is seen."""

from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio
import trio.testing

from nurseries.events import Streams
from nurseries.inbox import INBOX_FRAMES
from nurseries.isolation import Isolation
from nurseries.serving import Binary, Handshake, ServingLimits
from nurseries.session import Session
from tests.serving.house import echo, serving
from tests.serving.peer import BINARY, CLOSE, PING, PONG, TEXT, UPGRADE, frame

UNLIMITED = ServingLimits(frames_per_minute=1e9, frame_burst=10**9, close_seconds=0.5)
MORE_THAN_A_NETWORK_HOLDS = 200_000
"""Messages of a thousand bytes; how much the buffers of two sockets take is up to the system's settings."""

BOB = UPGRADE.replace(b"/ws", b"/session") + b"\r\n"


@attrs.define
class Host:
    """Serves a session for each socket of the path /session, and echoes on the others."""

    on_frame: Callable[[Session, str | bytes], Awaitable[None]]
    sessions: list[Session] = attrs.field(factory=list)
    ended: list[str] = attrs.field(factory=list)
    streams: Streams = attrs.field(factory=Streams)

    async def __call__(self, handshake: Handshake) -> None:
        if handshake.path != "/session":
            await echo(handshake)
            return
        with self.streams.listen("bob") as outbox:
            socket = await handshake.accept()
            session = Session(socket, outbox, session_id="1", isolation=Isolation())
            self.sessions.append(session)
            await session.run(self.on_frame)
        self.ended.append("session")

    async def work(self, session: Session) -> None:
        """A request that ends with its socket."""
        try:
            await trio.sleep_forever()
        finally:
            self.ended.append("request")


async def answer(session: Session, message: str | bytes) -> None:
    await session.answer(message.encode() if isinstance(message, str) else Binary(message))


async def test_messages_keep_their_kind_through_the_session():
    """Text and binary, empty ones too, in their order and through one writer."""
    said = [
        (TEXT, b"a"),
        (BINARY, b"b"),
        (TEXT, b""),
        (BINARY, b""),
        (BINARY, b"\xff" * 70_000),
        (TEXT, b"c"),
    ]
    async with serving(websocket=Host(answer)) as house, house.connect() as peer:
        await peer.send(BOB + b"".join(frame(payload, opcode) for opcode, payload in said))
        await peer.head()
        assert [await peer.frame() for _ in said] == said


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("count", [0, 1, INBOX_FRAMES, 3 * INBOX_FRAMES])
async def test_disconnect_is_seen_behind_unread_messages(how, count):
    """However many messages nobody has handled: the requests of the socket end at once."""
    handling, release = trio.Event(), trio.Event()

    async def never_done(session: Session, message: str | bytes) -> None:
        if message == "begin":
            session.requests.start_soon(host.work, session)
        else:
            handling.set()
            await release.wait()

    host = Host(never_done)
    async with serving(UNLIMITED, websocket=host) as house, house.connect() as peer:
        await peer.send(BOB + frame(b"begin") + frame(b"x") * count)
        await peer.head()
        if count:
            await handling.wait()
        if count > INBOX_FRAMES:
            await house.wait_for(lambda: host.sessions and host.sessions[0]._inbox.full)
        if how == "reset":
            await peer.reset()
        elif how == "close":
            await peer.stream.aclose()
        else:
            await peer.stream.send_eof()
        await house.wait_for(lambda: "request" in host.ended)
        release.set()  # until then the session lets what was said before be handled
        await house.wait_alone()
        assert host.ended == ["request", "session"]


async def test_reset_is_seen_behind_more_than_anybody_keeps():
    """Megabytes that nobody has handled, of which most never left the peer: its reset is seen all the same."""
    release = trio.Event()

    async def never_done(_session: Session, _message: str | bytes) -> None:
        await release.wait()

    host = Host(never_done)
    async with serving(UNLIMITED, websocket=host) as house, house.connect() as peer:
        await peer.send(BOB)
        await peer.head()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                while True:
                    await peer.send(frame(b"x" * 10_000))

            nursery.start_soon(send)
            await house.wait_for(lambda: host.sessions and host.sessions[0]._inbox.full)
            await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.cancel_scope.cancel()
        host.sessions[0].requests.start_soon(host.work, host.sessions[0])
        await peer.reset()
        await house.wait_for(lambda: "request" in host.ended)
        release.set()
        await house.wait_alone()


async def test_unhandled_messages_are_bounded():
    """While one is being handled, some wait here and the others in the network: the peer is slowed, nothing is lost."""
    gate, handled = trio.Event(), []

    async def slow(session: Session, message: str | bytes) -> None:
        await gate.wait()
        handled.append(message)

    host = Host(slow)
    text = "x" * 1_000
    async with serving(UNLIMITED, websocket=host) as house, house.connect() as peer:
        await peer.send(BOB)
        await peer.head()
        sent = 0

        async def send() -> None:
            nonlocal sent
            while not gate.is_set():
                assert sent < MORE_THAN_A_NETWORK_HOLDS, "the peer is not held back"
                await peer.send(frame(text.encode()) * 100)
                sent += 100

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await house.wait_for(lambda: host.sessions and host.sessions[0]._inbox.full)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert len(host.sessions[0]._inbox._frames) == INBOX_FRAMES
            gate.set()
        await house.wait_for(lambda: len(handled) == sent)
        assert set(handled) == {text}


async def test_flood_that_leaves_is_seen_at_once(autojump_clock):
    """A peer that is held back for its rate, and goes, is not waited for."""
    began = trio.current_time()
    async with serving() as house:
        async with house.websocket() as peer:
            await peer.send(frame(b"x") * 200)
            for _ in range(120):
                assert await peer.frame() == (TEXT, b"x")
            await peer.stream.send_eof()
            await house.wait_alone()
        assert trio.current_time() - began < 1


async def test_flood_is_closed_by_another_task_at_once(autojump_clock):
    """A socket that is revoked while its peer floods says so, and hears the farewell behind the flood."""
    sockets = []

    async def handler(handshake: Handshake) -> None:
        if handshake.path != "/session":
            await echo(handshake)
            return
        sockets.append(await handshake.accept())
        while True:
            await sockets[0].receive()

    limits = ServingLimits(frames_per_minute=7)  # so that one frame too many is held back for long
    async with serving(limits, websocket=handler) as house, house.connect() as peer:
        await peer.send(BOB)
        await peer.head()
        await peer.send(frame(b"x") * 200)
        await house.wait_for(lambda: sockets and sockets[0]._over_until)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sockets[0].close, 4401)
            opcode, payload = await peer.frame()
            assert (opcode, payload) == (CLOSE, b"\x11\x31")
            await peer.send(frame(payload, CLOSE))
            assert await peer.rest() == b""
            await peer.stream.aclose()
        await house.wait_alone()
        assert trio.current_time() - began < 1


async def test_ping_in_the_same_piece_as_the_handshake(autojump_clock):
    """It is answered at once, though nothing else is said."""
    async with serving(ServingLimits(heartbeat_seconds=3_600)) as house, house.connect() as peer:
        await peer.send(UPGRADE + b"\r\n" + frame(b"?", PING))
        await peer.head()
        assert await peer.frame() == (PONG, b"?")
