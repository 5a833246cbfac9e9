"""Listening sockets: TCP over IPv4 and IPv6, and unix."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BACKLOG = 1024
_PROBES = 4  # of a silent TCP peer
_LONGEST_IDLE = 32_767  # seconds, the most that Linux takes (tcp(7))


@contextlib.contextmanager
def listening(
    host: str | None, port: int, unix_path: Path | None, heartbeat: float
) -> Iterator[list[socket.socket]]:
    """Bind every address that `host` stands for, and a unix socket; close them all at the end.

    With port 0 the system picks one, the same for all addresses. A unix socket's file is removed at the end,
    and before the start if nobody listens on it any more. A TCP peer that is silent for `heartbeat` seconds
    is probed by the system, and given up after as many again.

    Raises:
        OSError: an address cannot be had; the message names it.
    """
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        if host is not None:
            with _named(f"{host}:{port}"):
                sockets += _bind(stack, host, port)
            for sock in sockets:
                _watch_peers(sock, heartbeat)
        if unix_path is not None:
            with _named(str(unix_path)):
                sockets.append(stack.enter_context(_unix(unix_path)))
        yield sockets


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {place}: {error.strerror}") from error


def _bind(stack: contextlib.ExitStack, host: str, port: int) -> Iterator[socket.socket]:
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, proto, _, address in dict.fromkeys(infos):
        sock = stack.enter_context(socket.socket(family, kind, proto))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # IPv4 has a socket of its own
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address[0], port, *address[2:]))
        port = port or sock.getsockname()[1]
        yield _listening(sock)


def _listening(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    sock.listen(_BACKLOG)
    return sock


def _watch_peers(sock: socket.socket, heartbeat: float) -> None:
    """Have the system notice peers that vanish. Connections inherit what their listening socket is set to.

    HTTP has no ping: without this, who waits for an answer behind a pulled cable would be waited for for ever.
    """
    idle = min(math.ceil(heartbeat), _LONGEST_IDLE)
    interval = math.ceil(idle / _PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, math.ceil(idle / interval))
    # Probes are not sent while something else waits to be acknowledged, such as an event of a stream.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2 * idle * 1000)


@contextlib.contextmanager
def _unix(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        _remove_stale(path)
        sock.bind(os.fspath(path))
        try:
            yield _listening(sock)
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return  # binding will say what is in the way
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)


def url_of(sock: socket.socket, *, secure: bool) -> str:
    """Return the URL under which a listening socket is reached."""
    scheme = "https" if secure else "http"
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"{scheme}+unix://{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"{scheme}://{host}:{name[1]}"
