"""The listener: where it listens, whom it lets in, how it drains, whom it believes."""

import json
import logging
import resource
import socket
from contextlib import AsyncExitStack

import pytest
import trio

from nurseries.serving import Handshake, Listener, ServingLimits
from tests.serving.house import echo, make_app, serving
from tests.serving.peer import GET, UPGRADE, Peer, frame


async def test_unix_socket(tmp_path):
    """A unix socket serves like a port, and its file goes with the server; a stale one is replaced."""
    path = tmp_path / "house.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serving(bystander=False, host=None, unix_path=path) as house:
        assert house.urls == [f"http+unix://{path}"]
        stream = await trio.open_unix_socket(path)
        peer = Peer(stream)
        await peer.send(GET + b"\r\n" + UPGRADE + b"\r\n")
        assert await peer.status() == 200
        assert (await peer.head()).startswith(b"HTTP/1.1 101")
        assert await peer.echo(b"hello") == b"hello"
        await stream.aclose()
    assert not path.exists()


async def test_unix_socket_in_use(tmp_path):
    """A socket that somebody listens on is not taken away."""
    path = tmp_path / "house.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            await Listener(http=make_app([]), websocket=echo, host=None, unix_path=path).serve()
        assert path.exists()


async def test_ipv6():
    """An IPv6 address is bound and reported as a URL."""
    async with serving(bystander=False, host="::1") as house:
        assert house.urls == [f"http://[::1]:{house.port}"]
        stream = await trio.open_tcp_stream("::1", house.port)
        peer = Peer(stream)
        await peer.send(GET.replace(b"/ ", b"/client ") + b"\r\n")
        assert json.loads((await peer.response())[2])["address"] == "::1"
        await stream.aclose()


async def test_every_address_of_a_name_has_the_same_port():
    """With port 0, IPv4 and IPv6 of one name get one port."""
    async with serving(bystander=False, host="localhost") as house:
        assert {url.rpartition(":")[2] for url in house.urls} == {str(house.port)}


async def test_port_in_use():
    """A port that is taken is an error at the start."""
    async with serving() as house:
        with pytest.raises(OSError, match="in use"):
            await Listener(http=make_app([]), websocket=echo, port=house.port).serve()


async def test_connections_per_address():
    """One connection more than an address may have is answered 429, and one less lets it in again."""
    async with serving(ServingLimits(connections_per_address=3)) as house:
        async with house.connect() as first, house.connect():
            async with house.connect() as peer:
                assert await peer.status() == 429
            await first.stream.aclose()
            await house.wait_for(lambda: house.statistics.connections == 2)
            async with house.connect() as peer:
                await peer.send(GET + b"\r\n")
                assert await peer.status() == 200
        assert house.statistics.refused == 1


async def test_connections_in_all():
    """One connection more than the server may have is answered 503 with Retry-After."""
    async with serving(ServingLimits(connections=2)) as house, house.connect(), house.connect() as peer:
        status, head, _ = await peer.response()
        assert status == 503
        assert b"retry-after" in head


async def test_many_connections_too_many():
    """Only so many are told at the same time; the others are closed, since being told takes a task."""
    async with serving(ServingLimits(connections=1, close_seconds=60)) as house, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(house.connect()) for _ in range(80)]
        await house.wait_for(lambda: house.statistics.refused == 80)
        assert [await peer.status() for peer in peers] == [503] * 64 + [0] * 16


async def test_no_descriptor_is_left(caplog):
    """Those who come wait, and are served when there is one again."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving() as house:
        with trio.socket.socket() as sock:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, usual[1]))
            try:
                await sock.connect(("127.0.0.1", house.port))
                await house.wait_for(lambda: "cannot accept" in caplog.text)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, usual)
            peer = Peer(trio.SocketStream(sock))
            await peer.send(GET + b"\r\n")
            assert await peer.status() == 200


async def test_somebody_is_told_of_each_limit():
    """Of each connection and each request that is turned away, with its address."""
    told = []
    limits = ServingLimits(connections=2, requests_per_second=0.001, request_burst=1)
    async with serving(limits, on_limit=lambda *limit: told.append(limit)) as house, house.connect() as peer:
        await peer.send(GET + b"\r\n")
        assert await peer.status() == 429
        async with house.connect() as other:
            assert await other.status() == 503
    assert told == [("rate", "127.0.0.1"), ("connections", "127.0.0.1")]


@pytest.mark.parametrize(("trusted", "address"), [([], "unix"), (["unix"], "203.0.113.7")])
async def test_proxy_on_a_unix_socket(tmp_path, trusted, address):
    """It is believed if unix sockets are trusted, and nameless else."""
    path = tmp_path / "house.sock"
    async with serving(host=None, unix_path=path, trusted_proxies=trusted) as house, house.connect() as peer:
        await peer.send(GET.replace(b"/ ", b"/client ") + b"X-Forwarded-For: 203.0.113.7\r\n\r\n")
        assert json.loads((await peer.response())[2])["address"] == address


async def test_forwarded_headers_are_nobodys_word():
    """Without a trusted proxy, X-Forwarded headers change nothing."""
    async with serving() as house, house.connect() as peer:
        await peer.send(
            GET.replace(b"/ ", b"/client ")
            + b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nForwarded: for=1.2.3.4\r\n\r\n"
        )
        assert json.loads((await peer.response())[2]) == {"address": "127.0.0.1", "scheme": "http"}


async def test_forwarded_headers_of_a_trusted_proxy(autojump_clock):
    """A trusted proxy names the client, for requests, sockets and rates alike."""
    peers = []

    async def remember(handshake: Handshake) -> None:
        peers.append(handshake.peer)
        await echo(handshake)

    headers = b"X-Forwarded-For: 6.6.6.6, 203.0.113.7, 127.0.0.1\r\nX-Forwarded-Proto: https\r\n\r\n"
    async with serving(
        ServingLimits(requests_per_second=1, request_burst=2),
        websocket=remember,
        trusted_proxies=["127.0.0.0/8"],
    ) as house:
        async with house.connect() as peer:
            await peer.send((GET.replace(b"/ ", b"/client ") + headers) * 2)
            client = {"address": "203.0.113.7", "scheme": "https"}
            assert json.loads((await peer.response())[2]) == client
            assert await peer.status() == 200
            await peer.send(GET + headers)
            assert await peer.status() == 429
            await peer.send(GET + b"X-Forwarded-For: 203.0.113.8\r\n\r\n")
            assert await peer.status() == 200
        async with house.websocket(b"X-Forwarded-For: 203.0.113.9\r\n"):
            assert peers == ["127.0.0.1", "203.0.113.9"]


async def test_handshake_tells_all():
    """A handler sees path, query, headers with any bytes, origin and the offered subprotocols in order."""
    seen = []

    async def look(handshake: Handshake) -> None:
        seen.append((handshake, handshake.headers))
        await echo(handshake)

    async with serving(websocket=look) as house, house.connect() as peer:
        await peer.send(
            UPGRADE.replace(b"/ws", b"/a%20b?c=d&e")
            + b"Origin: null\r\nSec-WebSocket-Protocol: other, house\r\nSec-WebSocket-Protocol: third\r\n"
            + b"X-Name: \xe9\xff\r\nAuthorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n"
        )
        assert b"Sec-WebSocket-Protocol: house" in await peer.head()
        handshake, headers = seen[-1]
        assert (handshake.path, handshake.query) == ("/a%20b", "c=d&e")
        assert handshake.origin == "null"
        assert handshake.subprotocols == ("other", "house", "third")
        assert headers["X-NAME"] == "éÿ"
        assert headers["authorization"] == "Bearer a, Bearer b"


async def test_handshake_is_refused_by_its_handler():
    """A refusal is an HTTP answer with the handler's status, headers and body."""

    async def refuse(handshake: Handshake) -> None:
        if handshake.path == "/ws":
            await echo(handshake)
        else:
            await handshake.refuse(401, headers=[(b"www-authenticate", b"Bearer")])

    async with serving(websocket=refuse) as house, house.connect() as peer:
        await peer.send(UPGRADE.replace(b"/ws", b"/other") + b"\r\n")
        status, head, body = await peer.response()
        assert status == 401
        assert b"www-authenticate: Bearer" in head
        assert json.loads(body)["status"] == 401


async def test_handshake_is_answered_once():
    """Accepting what is not offered, or answering twice, is the handler's own failure."""

    async def twice(handshake: Handshake) -> None:
        if handshake.path == "/ws":
            await echo(handshake)
            return
        with pytest.raises(ValueError, match="not offered"):
            await handshake.accept("house")
        websocket = await handshake.accept()
        with pytest.raises(RuntimeError):
            await handshake.accept()
        await websocket.close(1000)

    async with serving(websocket=twice) as house, house.connect() as peer:
        await peer.send(UPGRADE.replace(b"/ws", b"/other") + b"\r\n")
        await peer.head()
        assert await peer.close_code() == 1000


async def test_crash_is_logged_once_with_the_peer(caplog):
    """A failing socket handler is one line in the log, which names the peer."""
    async with serving(crashes=1) as house, house.websocket() as peer:
        await peer.send(frame(b"crash"))
        assert await peer.close_code() == 1011
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "127.0.0.1" in errors[0].getMessage()
