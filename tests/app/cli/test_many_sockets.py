"""Draining with a house full of sockets, some of which belong to nobody who listens."""

import json
import signal
import socket
from contextlib import AsyncExitStack

import trio

from tests.fixtures.handshake import upgraded
from tests.fixtures.house import signed_up
from tests.fixtures.process import served

USERS, EACH, DEAF_USERS = 20, 10, 5
CLOSE_1012 = bytes([0x03, 0xF4])


async def open_raw(url: str, token: str, stack: AsyncExitStack, *, deaf: bool) -> trio.SocketStream:
    """Upgrade by hand and read the first frame; one that is deaf has little room for more."""
    host, _, port = url.removeprefix("http://").partition(":")
    plain = trio.socket.socket()
    if deaf:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await plain.connect((host, int(port)))
    stream = await stack.enter_async_context(trio.SocketStream(plain))
    await upgraded(stream, token)
    return stream


async def test_two_hundred_sockets_of_which_fifty_do_not_read(database, tmp_path):
    """The server ends by itself with 0, and whoever reads is told 1012."""
    async with served(tmp_path / "log", "--database-url", database.owner, "--load-agent") as server:
        farewells = []

        async def read_to_the_end(stream):
            tail = b""
            try:
                while data := await stream.receive_some(65536):
                    tail = (tail + data)[-200:]
            except trio.BrokenResourceError:
                pass  # the end of the server resets what it still has to say to a peer that does not answer
            farewells.append(CLOSE_1012 in tail)

        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            for number in range(USERS):
                user = await stack.enter_async_context(signed_up(server.url))
                deaf = number < DEAF_USERS
                for _ in range(EACH):
                    stream = await open_raw(server.url, user.access_token, stack, deaf=deaf)
                    if not deaf:
                        nursery.start_soon(read_to_the_end, stream)
                if deaf:  # so that there is something that its sockets do not read
                    order = json.dumps({"events": 100, "delta_bytes": 8000})
                    await user.run(await user.thread(), order, agent="load")
            server.signal(signal.SIGTERM)
            assert await server.ended() == 0
        assert len(farewells) == (USERS - DEAF_USERS) * EACH
        assert all(farewells)
