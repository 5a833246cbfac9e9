"""What serving costs: our listener beside Hypercorn with quart-trio as it comes, and beside uvicorn.

    python -m tests.bench.serving [--rounds 5] [--json]

Each server runs in a process of its own and serves the same routes. Rounds are interleaved, so that what
else the machine does falls on all alike, and what is compared is work per second of the server's own CPU
time: it does not depend on the load generator. Idle memory is the growth of the resident set with 1,000
open sockets.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVERS = ("nurseries", "hypercorn", "uvicorn")
BURST_FRAMES = 24  # what one chat turn sends
TEXT = b'{"type":"message_delta","payload":{"text":"' + b"x" * 150 + b'"}}'
CONNECTIONS = 16
IDLE_SOCKETS = 1_000


# -- the servers -----------------------------------------------------------------------------------------


def serve_nurseries() -> None:
    """Our listener with Quart, and a handler on the socket itself."""
    import trio  # each server process imports its own stack only
    from quart_trio import QuartTrio

    from nurseries.serving import Handshake, Listener, ServingLimits, SocketClosed

    app = QuartTrio("bench")

    @app.get("/")
    async def index() -> str:
        return "ok"

    sockets = set()

    async def handler(handshake: Handshake) -> None:
        websocket = await handshake.accept()
        sockets.add(websocket)
        try:
            while True:
                message = await websocket.receive()
                if message == "burst":
                    for other in tuple(sockets):
                        with suppress(SocketClosed):
                            await other.send([TEXT] * BURST_FRAMES)
                else:
                    await websocket.send([message.encode()])
        finally:
            sockets.discard(websocket)

    async def main() -> None:
        limits = ServingLimits(
            connections_per_address=10_000,
            requests_per_second=1e9,
            request_burst=10**9,
            frames_per_minute=1e9,
            frame_burst=10**9,
            heartbeat_seconds=600,
        )
        listener = Listener(http=app, websocket=handler, port=0, limits=limits)
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(listener.serve)
            print(urls[0].rpartition(":")[2], flush=True)

    trio.run(main)


def serve_hypercorn() -> None:
    """Hypercorn and quart-trio as they come."""
    import trio
    from hypercorn.config import Config
    from hypercorn.trio import serve
    from quart import websocket
    from quart_trio import QuartTrio

    app = QuartTrio("bench")

    @app.get("/")
    async def index() -> str:
        return "ok"

    sockets = set()

    @app.websocket("/ws")
    async def handler() -> None:
        this = websocket._get_current_object()
        sockets.add(this)
        try:
            while True:
                message = await this.receive()
                if message == "burst":
                    for other in tuple(sockets):
                        for _ in range(BURST_FRAMES):
                            await other.send(TEXT.decode())
                else:
                    await this.send(message)
        finally:
            sockets.discard(this)

    async def main() -> None:
        config = Config()
        config.bind = ["127.0.0.1:0"]
        config.errorlog = None
        config.keep_alive_max_requests = 10**9
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(serve, app, config)
            print(urls[0].rpartition(":")[2], flush=True)

    trio.run(main)


def serve_uvicorn() -> None:
    """Uvicorn with uvloop, httptools and websockets, and a bare ASGI application."""
    import uvicorn

    sockets = set()

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "http":
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-length", b"2"), (b"content-type", b"text/html; charset=utf-8")],
                }
            )
            await send({"type": "http.response.body", "body": b"ok"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            sockets.add(send)
            while (message := await receive())["type"] == "websocket.receive":
                if message["text"] == "burst":
                    for other in tuple(sockets):
                        for _ in range(BURST_FRAMES):
                            await other({"type": "websocket.send", "text": TEXT.decode()})
                else:
                    await send({"type": "websocket.send", "text": message["text"]})
            sockets.discard(send)

    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(sock.getsockname()[1], flush=True)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="websockets",
        lifespan="off",
        log_level="error",
        access_log=False,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
    )
    uvicorn.Server(config).run(sockets=[sock])


@contextmanager
def running(name: str) -> Iterator[tuple[int, psutil.Process]]:
    """Run a server; yields its port and its process."""
    command = [sys.executable, "-m", "tests.bench.serving", "--serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield int(process.stdout.readline()), psutil.Process(process.pid)
        finally:
            process.kill()


# -- the load --------------------------------------------------------------------------------------------


def frame(text: bytes) -> bytes:
    """Return a masked text frame; the mask of zeros changes nothing."""
    return bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text


@contextmanager
def connected(port: int, count: int, *, upgrade: bool) -> Iterator[list[socket.socket]]:
    """Open connections, as WebSockets if so asked."""
    with ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if upgrade:
                key = base64.b64encode(os.urandom(16))
                sock.sendall(
                    b"GET /ws HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
                )
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(4096)
                assert head.startswith(b"HTTP/1.1 101"), head
            sockets.append(sock)
        yield sockets


def ping_pong(sockets: list[socket.socket], request: bytes, answer: int, turns: int) -> None:
    """On every connection at once: send, wait for `answer` bytes, and again."""
    with selectors.EpollSelector() as selector:
        missing = {}
        for sock in sockets:
            sock.sendall(request)
            missing[sock] = answer
            selector.register(sock, selectors.EVENT_READ)
        left, running_now = turns - len(sockets), len(sockets)
        while running_now:
            for key, _ in selector.select():
                sock = key.fileobj
                data = sock.recv(262_144)
                assert data, "the server closed a connection"
                missing[sock] -= len(data)
                if missing[sock]:
                    continue
                if left > 0:
                    left -= 1
                    missing[sock] = answer
                    sock.sendall(request)
                else:
                    running_now -= 1


def http_answer(sock: socket.socket, request: bytes) -> int:
    """Return how long the answer to a request is."""
    sock.sendall(request)
    data = b""
    while not data.endswith(b"\r\n\r\nok"):
        data += sock.recv(65_536)
    return len(data)


def http(port: int, cpu: Callable[[], float]) -> float:
    """Requests per second of server CPU."""
    request = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
    with connected(port, CONNECTIONS, upgrade=False) as sockets:
        answer = http_answer(sockets[0], request)
        ping_pong(sockets, request, answer, 500)
        start, turns = cpu(), 3_000
        ping_pong(sockets, request, answer, turns)
        return turns / (cpu() - start)


def echo(port: int, cpu: Callable[[], float]) -> float:
    """Echoes of a 100-byte text per second of server CPU."""
    request = frame(b"e" * 100)
    answer = 2 + 100
    with connected(port, CONNECTIONS, upgrade=True) as sockets:
        ping_pong(sockets, request, answer, 1_000)
        start, turns = cpu(), 15_000
        ping_pong(sockets, request, answer, turns)
        return turns / (cpu() - start)


def broadcast(port: int, cpu: Callable[[], float]) -> float:
    """Frames per second of server CPU, when everyone gets 24 frames for each message of one."""
    per_socket = BURST_FRAMES * (4 + len(TEXT))
    with connected(port, CONNECTIONS, upgrade=True) as sockets:
        ping_pong(sockets, frame(b"e" * 100), 102, CONNECTIONS)  # who echoes is in the audience
        start, rounds = cpu(), 200
        for _ in range(rounds):
            sockets[0].sendall(frame(b"burst"))
            for sock in sockets:
                missing = per_socket
                while missing:
                    data = sock.recv(missing)
                    assert data, "the server closed a connection"
                    missing -= len(data)
        return rounds * len(sockets) * BURST_FRAMES / (cpu() - start)


def idle_kilobytes(name: str) -> float:
    """Resident memory of the server for one idle socket, in KB, after an echo on each."""
    with running(name) as (port, process):
        with connected(port, 50, upgrade=True) as sockets:
            ping_pong(sockets, frame(b"e" * 100), 102, 200)
        before = process.memory_info().rss
        with connected(port, IDLE_SOCKETS, upgrade=True) as sockets:
            ping_pong(sockets, frame(b"e" * 100), 102, IDLE_SOCKETS)
            return (process.memory_info().rss - before) / IDLE_SOCKETS / 1_000


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Return the median of each measure for each server."""
    measures = {"http": http, "echo": echo, "broadcast": broadcast}
    samples: dict[str, dict[str, list[float]]] = {m: {s: [] for s in SERVERS} for m in measures}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(running(name)) for name in SERVERS}
        for _ in range(rounds):
            for measure_name, function in measures.items():
                for name, (port, process) in servers.items():

                    def cpu(process: psutil.Process = process) -> float:
                        times = process.cpu_times()
                        return times.user + times.system

                    samples[measure_name][name].append(function(port, cpu))
    results = {m: {s: statistics.median(v) for s, v in per.items()} for m, per in samples.items()}
    results["idle_kb"] = {name: idle_kilobytes(name) for name in SERVERS}
    return results


def main() -> None:
    """Run the comparison, or one server of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", choices=SERVERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.serve:
        {"nurseries": serve_nurseries, "hypercorn": serve_hypercorn, "uvicorn": serve_uvicorn}[
            options.serve
        ]()
        return
    results = measure(options.rounds)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    print(f"{'':<28}" + "".join(f"{name:>14}" for name in SERVERS) + "   ours/hypercorn  ours/uvicorn")
    for name, row in results.items():
        label = name if name == "idle_kb" else f"{name} a CPU second"
        ours = row["nurseries"]
        print(
            f"{label:<28}"
            + "".join(f"{row[server]:>14,.1f}" for server in SERVERS)
            + f"{ours / row['hypercorn']:>15.2f}x{ours / row['uvicorn']:>12.2f}x"
        )


if __name__ == "__main__":
    main()
