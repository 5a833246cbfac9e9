"""How it ends: drained, cancelled, closed by a handler or in the middle of a send."""

import pytest
import trio
import trio.testing

from nurseries.serving import Handshake, Listener, ServingLimits
from tests.serving.house import echo, make_app, serving
from tests.serving.peer import GET, PING, UPGRADE, Peer, frame


async def test_drain():
    """Draining closes the port and idle connections, ends the busy ones after their answer, leaves sockets."""
    answer = trio.Event()

    async def http(scope, receive, send):
        if scope["path"] == "/slow":
            await answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async with (
        serving(http=http) as house,
        house.websocket() as chat,
        house.connect() as silent,
        house.connect() as idle,
        house.connect() as busy,
    ):
        await idle.send(GET + b"\r\n")
        assert await idle.status() == 200
        await busy.send(GET.replace(b"/ ", b"/slow ") + b"\r\n" + GET + b"\r\n")
        await house.wait_for(lambda: house.statistics.requests == 1)
        house.listener.drain()
        with trio.fail_after(5):  # long before they would have been closed anyway
            assert await idle.rest() == b""
            assert await silent.rest() == b""
        with pytest.raises(OSError):  # whichever way the system says that nobody listens
            await trio.open_tcp_stream("127.0.0.1", house.port)
        assert await chat.echo(b"still here") == b"still here"
        answer.set()
        status, head, _ = await busy.response()
        assert status == 200
        assert b"connection: close" in head.lower()
        assert await busy.rest() == b""
        house.server_scope.cancel()
        assert await chat.close_code() == 1012


async def test_serve_returns_when_drained():
    """After a drain, `serve` returns with the last connection."""
    listener = Listener(http=make_app([]), websocket=echo, port=0)
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(listener.serve)
        stream = await trio.open_tcp_stream("127.0.0.1", int(urls[0].rpartition(":")[2]))
        peer = Peer(stream)
        await peer.send(UPGRADE + b"\r\n")
        await peer.head()
        listener.drain()
        assert await peer.echo(b"hello") == b"hello"
        await peer.send(frame(b"return"))
        assert await peer.close_code() == 1000
        await stream.aclose()
    assert listener.statistics().connections == 0


async def test_cancelled_server_closes_sockets_with_1012(autojump_clock):
    """A server that is cancelled says that it restarts, and does not wait for those who do not answer."""
    async with serving(bystander=False) as house, house.websocket() as one, house.websocket() as two:
        began = trio.current_time()
        house.server_scope.cancel()
        assert await one.close_code() == 1012
        assert await two.close_code() == 1012
        await house.wait_for(lambda: house.statistics.connections == 0)
        assert trio.current_time() - began < 10


async def test_cancelled_server_does_not_wait_for_those_who_never_read():
    """A peer that takes nothing holds up no shutdown."""
    limits = ServingLimits(write_seconds=600, close_seconds=0.2)
    async with (
        serving(limits, bystander=False) as house,
        house.websocket() as sock,
        house.connect() as http,
    ):
        await sock.send(frame(b"flood me"))
        await http.send(GET.replace(b"/ ", b"/endless ") + b"\r\n")
        await house.wait_for(lambda: house.events)
        house.server_scope.cancel()
        await house.wait_for(lambda: house.statistics.connections == 0)


async def test_close_by_the_handler_while_it_reads(autojump_clock):
    """A task may close a socket that another one reads: both see the end, and the peer the code."""
    outcomes = []

    async def handler(handshake: Handshake) -> None:
        if handshake.path == "/ws":
            await echo(handshake)
            return
        websocket = await handshake.accept()

        async def read() -> None:
            try:
                await websocket.receive()
            except Exception as error:  # noqa: BLE001  # the test looks at what came
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await websocket.close(4401, "é" * 100)
            await websocket.close(1000)

    for answers in (True, False):
        async with serving(websocket=handler) as house, house.connect() as peer:
            await peer.send(UPGRADE.replace(b"/ws", b"/other") + b"\r\n")
            await peer.head()
            opcode, payload = await peer.frame()
            while opcode == PING:
                opcode, payload = await peer.frame()
            assert payload == b"\x11\x31" + "é".encode() * 61
            if answers:
                await peer.send(frame(payload[:2], 8))
            assert await peer.rest() == b""
            await house.wait_alone()
        assert [(type(error).__name__, error.code) for error in outcomes] == [("SocketClosed", 4401)]
        outcomes.clear()


async def test_cancelled_send_closes_the_socket():
    """After a send that was cut short nothing more is sent: the peer may have half a frame."""
    outcomes = []

    async def handler(handshake: Handshake) -> None:
        if handshake.path == "/ws":
            await echo(handshake)
            return
        websocket = await handshake.accept()

        async def send_for_ever() -> None:
            while True:
                await websocket.send([b"x" * 100_000] * 10)

        async with trio.open_nursery() as sending:
            sending.start_soon(send_for_ever)
            await trio.testing.wait_all_tasks_blocked()  # the peer takes no more: in the middle of a frame
            sending.cancel_scope.cancel()
        try:
            await websocket.send([b"more"])
        except Exception as error:  # noqa: BLE001  # the test looks at what came
            outcomes.append(error)

    async with serving(websocket=handler) as house, house.connect() as peer:
        await peer.send(UPGRADE.replace(b"/ws", b"/other") + b"\r\n")
        await house.wait_for(lambda: outcomes)
        await peer.head()
        assert await peer.close_code() == 1006
        assert outcomes[0].code == 1006
