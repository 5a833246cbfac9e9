"""TLS: HTTP/1.1 and WebSockets in it, certificates that are renewed, peers that do not speak it."""

import socket
import ssl

import pytest
import trio

from nurseries.serving import Certificates, Listener, ServingLimits
from tests.serving.house import echo, make_app, serving
from tests.serving.peer import GET


def secure(certificates, **options):
    return serving(certificates=certificates.files, client_tls=certificates.client, **options)


async def test_http_and_websocket(certificates):
    """Both work in TLS, on one connection, and the application knows that it is secure."""
    async with secure(certificates) as house:
        assert house.urls[0].startswith("https://")
        async with house.connect() as peer:
            await peer.send(GET.replace(b"/ ", b"/client ") + b"\r\n")
            assert b"https" in (await peer.response())[2]
        async with house.websocket() as peer:
            assert await peer.echo(b"x" * 100_000) == b"x" * 100_000


async def test_big_answer(certificates):
    """An answer larger than every buffer arrives whole, and the end is a proper end of TLS."""
    certificates.client.options |= 0
    async with secure(certificates) as house, house.connect() as peer:
        await peer.send(b"GET /big?bytes=5000000 HTTP/1.0\r\n\r\n")
        assert len((await peer.rest()).partition(b"\r\n\r\n")[2]) == 5_000_000


async def test_reload_certificates(certificates):
    """After a reload new connections see the new certificate, and old ones go on."""
    async with secure(certificates) as house, house.websocket() as old:
        before = old.stream.getpeercert(binary_form=True)
        certificates.renew()
        house.listener.reload_certificates()
        async with house.connect() as new:
            assert new.stream.getpeercert(binary_form=True) != before
        assert await old.echo(b"hello") == b"hello"


async def test_reload_of_broken_certificates(certificates):
    """A file that is no certificate is an error for the operator, and the old one stays."""
    async with secure(certificates) as house:
        certificates.files.certificate.write_text("nonsense")
        with pytest.raises(ssl.SSLError):
            house.listener.reload_certificates()
        async with house.connect() as peer:
            await peer.send(GET + b"\r\n")
            assert await peer.status() == 200


def test_missing_certificate(tmp_path):
    """A certificate that is not there is an error at the start."""
    with pytest.raises(FileNotFoundError):
        Listener(
            http=make_app([]), websocket=echo, certificates=Certificates(tmp_path / "no", tmp_path / "no")
        )


@pytest.mark.parametrize("data", [GET + b"\r\n", b"\x16\x03\x01", b"\x16\x03\x01\xff\xff" + b"x" * 70_000])
async def test_peer_that_does_not_speak_tls(certificates, data):
    """Plain HTTP, half a hello and a broken one are closed."""
    async with secure(certificates) as house:
        stream = await trio.open_tcp_stream("127.0.0.1", house.port)
        try:
            await stream.send_all(data)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        await stream.aclose()
        await house.wait_alone()


async def test_hanging_handshake(certificates, autojump_clock):
    """A TLS handshake that does not go on is closed."""
    async with secure(certificates, limits=ServingLimits(tls_seconds=0.1)) as house:
        stream = await trio.open_tcp_stream("127.0.0.1", house.port)
        assert await stream.receive_some() == b""
        await stream.aclose()
        await house.wait_alone()


async def test_reset_in_tls(certificates):
    """A reset without a farewell ends the handler."""
    async with secure(certificates) as house:
        async with house.connect() as peer:
            await peer.send(GET.replace(b"/ ", b"/endless ") + b"\r\n")
            await peer.head()
            transport = peer.stream.transport_stream
            transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            await transport.aclose()
        await house.wait_for(lambda: house.events == ["began", "ended"])
        await house.wait_alone()
