"""Certificates, and how a connection becomes encrypted."""

from __future__ import annotations

import ssl
from pathlib import Path  # noqa: TC003  # attrs resolves it for those who inspect the class
from typing import TYPE_CHECKING

import attrs
import trio

from nurseries.serving.wire import TLSWire, WireBroken

if TYPE_CHECKING:
    import socket


@attrs.frozen
class Certificates:
    """Where the server's certificate is.

    Attributes:
        certificate: PEM file: the certificate, then its chain.
        key: PEM file of the private key.
    """

    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """Read the files. TLS 1.2 and newer, HTTP/2 before HTTP/1.1.

        Raises:
            OSError: a file cannot be read, or is not what it should be (`ssl.SSLError`).
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # what HTTP/2 allows (RFC 9113, 9.2.2)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["h2", "http/1.1"])
        context.load_cert_chain(self.certificate, self.key)
        return context


async def encrypt(sock: socket.socket, context: ssl.SSLContext, write_seconds: float) -> TLSWire:
    """Do the server's side of a TLS handshake.

    Raises:
        WireBroken: the peer does not speak TLS, or not ours.
    """
    transport = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    stream = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
    try:
        await stream.do_handshake()
    except (trio.BrokenResourceError, OSError) as error:
        raise WireBroken from error
    return TLSWire(sock, stream, write_seconds)
