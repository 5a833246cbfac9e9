"""One barrier a connection: what fails in it, ours or a handler's, is logged once with the peer, and stays there."""

import logging

import pytest
import trio

from nurseries.serving import Handshake, ServingLimits
from nurseries.serving.asgi import ClientDisconnected, barrier, contained
from nurseries.serving.dialogue import Dialogue
from nurseries.serving.http1 import HTTP1
from nurseries.serving.http2 import HTTP2
from tests.serving import http2_peer
from tests.serving.house import echo, serving
from tests.serving.peer import GET, TEXT, UPGRADE, frame


def errors(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def breaks(monkeypatch, cls: type, name: str, when) -> None:
    """Make a method of ours fail where `when(*arguments)` holds."""
    method = getattr(cls, name)

    def broken(self, *arguments):
        if when(*arguments):
            raise ZeroDivisionError("a mistake of ours")
        return method(self, *arguments)

    monkeypatch.setattr(cls, name, broken)


async def test_fault_of_ours_in_http1_ends_one_connection(monkeypatch, caplog):
    """Nothing is answered, since nobody knows what was said; the next connection is served."""
    breaks(monkeypatch, HTTP1, "_begin", lambda request, _problem: request.target == b"/fault")
    async with serving(crashes=1) as house:
        async with house.connect() as peer:
            await peer.send(GET.replace(b"/ ", b"/fault ") + b"\r\n")
            assert await peer.rest() == b""
        async with house.connect() as peer:
            await peer.send(GET + b"\r\n")
            assert await peer.status() == 200
        await house.wait_alone()
    (line,) = errors(caplog)
    assert "127.0.0.1" in line


async def test_fault_of_ours_in_http2_ends_one_connection(monkeypatch, caplog, certificates):
    """All its streams end with it, and no others."""
    breaks(monkeypatch, HTTP2, "_handle", lambda event: b"fault" in repr(event).encode())
    async with http2_peer.quick(certificates, crashes=1) as house:
        async with http2_peer.client(house) as made, http2_peer.client(house) as other:
            for each in (made, other):
                await each.ask(1, "/wait")
            await house.wait_for(lambda: house.events == ["began"] * 2)
            await made.ask(3, "/fault")
            await house.wait_for(lambda: house.events == ["began", "began", "ended"])
            await other.ask(3)
            await other.until(3)
            assert other.status[3] == 200
        await house.wait_alone()
    (line,) = errors(caplog)
    assert "127.0.0.1" in line


async def test_fault_of_ours_in_a_websocket_ends_one_socket(monkeypatch, caplog):
    """It is closed with 1011 like any failure of this side."""
    breaks(monkeypatch, Dialogue, "message_of", lambda frame: frame.data == b"fault")
    async with serving(crashes=1) as house, house.websocket() as peer, house.websocket() as other:
        await peer.send(frame(b"fault"))
        assert await peer.close_code() == 1011
        await other.send(frame(b"fine"))
        assert await other.frame() == (TEXT, b"fine")
    (line,) = errors(caplog)
    assert "127.0.0.1" in line


async def test_failure_beside_a_cancellation_is_not_lost(caplog):
    """A handler whose tasks were cancelled because one of them failed is logged with that failure alone."""

    async def fails(handshake: Handshake) -> None:
        if handshake.path == "/ws":
            await echo(handshake)
            return
        await handshake.accept()

        async def resist() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("while it was cancelled")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(resist)
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError("first")

    async with serving(websocket=fails, crashes=1) as house, house.connect() as peer:
        await peer.send(UPGRADE.replace(b"/ws", b"/fails") + b"\r\n")
        await peer.head()
        assert await peer.close_code() == 1011
    (line,) = errors(caplog)
    assert "first" in line
    assert "while it was cancelled" in line
    assert "Cancelled" not in line


START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"body"}

INVALID = {
    "status": ([{**START, "status": 1000}, BODY], 500),
    "no final status": ([{**START, "status": 103}, BODY], 500),
    "line in a header": ([{**START, "headers": [(b"x", b"a\r\nset-cookie: b")]}, BODY], 500),
    "text in a header": ([{**START, "headers": [("x", "y")]}, BODY], 500),
    "length that is none": ([{**START, "headers": [(b"content-length", b"four")]}, BODY], 500),
    "body first": ([BODY], 500),
    "unknown message": ([{"type": "http.response.nonsense"}], 500),
    "two heads": ([START, START, BODY], 200),
    "text as body": ([START, {**BODY, "body": "text"}], 200),
    "too little": ([{**START, "headers": [(b"content-length", b"5")]}, BODY], 200),
    "too much": ([{**START, "headers": [(b"content-length", b"3")]}, BODY], None),
}
"""What an application says, and the status that its client gets: 200 is cut, None is either cut or nothing."""


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
@pytest.mark.parametrize("name", INVALID)
async def test_application_that_breaks_its_side(name, protocol, certificates, caplog):
    """On both protocols it has failed, once: its answer is a 500, or is cut and does not look complete."""
    messages, status = INVALID[name]

    async def http(_scope, _receive, send):
        for message in messages:
            await send(message)

    options = {"http": http, "crashes": 1}
    if protocol == "h2":
        async with http2_peer.quick(certificates, **options) as house, http2_peer.client(house) as made:
            await made.ask(1)
            await made.until(1)
            assert status is None or made.status == {1: status}
            assert (1 in made.ended) is (status == 500)
    else:
        async with serving(ServingLimits(close_seconds=0.2), **options) as house, house.connect() as peer:
            await peer.send(GET + b"Connection: close\r\n\r\n")
            answer = await peer.rest()
            assert answer.startswith(b"HTTP/1.1 %d" % status) if status else answer == b""
            assert answer.endswith(b"}") is (status == 500)
            assert not answer.endswith(b"0\r\n\r\n")
    (line,) = errors(caplog)
    assert "127.0.0.1" in line


async def test_failure_is_logged_with_the_client_behind_a_proxy(caplog):
    """Not with the proxy, whose address says nothing."""

    async def http(_scope, _receive, _send):
        raise ZeroDivisionError("fault")

    async with serving(http=http, crashes=1, trusted_proxies=["127.0.0.1"]) as house, house.connect() as peer:
        await peer.send(GET + b"X-Forwarded-For: 203.0.113.7\r\n\r\n")
        assert await peer.status() == 500
    (line,) = errors(caplog)
    assert "203.0.113.7" in line


def cancelled() -> trio.Cancelled:
    """Return one as Trio raises it."""

    async def be_cancelled() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as error:
                caught.append(error)
                raise

    caught: list[trio.Cancelled] = []
    trio.run(be_cancelled)
    return caught[0]


def test_what_is_left_of_an_error():
    """A cancellation and what was expected are no failures; everything beside them is."""
    gone, fault = ClientDisconnected("gone"), ZeroDivisionError("fault")
    assert contained(fault) is fault
    assert contained(gone, ClientDisconnected) is None
    assert contained(BaseExceptionGroup("", [cancelled(), gone]), ClientDisconnected) is None
    rest = contained(
        BaseExceptionGroup("", [cancelled(), BaseExceptionGroup("", [gone, fault])]), ClientDisconnected
    )
    assert rest is not None
    assert "fault" in repr(rest)
    assert "gone" not in repr(rest)


@pytest.mark.parametrize("group", [False, True])
def test_only_an_interrupt_passes(group):
    """Ctrl-C ends the process, however deep it stands; SystemExit is a failure like any other."""
    interrupt = KeyboardInterrupt()
    crashes: list[None] = []
    error = BaseExceptionGroup("", [ValueError(), interrupt]) if group else interrupt
    with pytest.raises(KeyboardInterrupt), barrier("test", "peer", lambda: crashes.append(None)):
        raise error
    assert not crashes
    with barrier("test", "peer", lambda: crashes.append(None)):
        raise SystemExit(3)
    assert len(crashes) == 1
