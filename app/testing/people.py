"""People who use a server, and know nothing of it but the protocol."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import attrs
import httpx
import trio
import trio_websocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

PASSWORD: Final = "correct horse battery staple"  # noqa: S105  # of people who are not there
PATIENCE_SECONDS: Final = 30.0
"""Long enough for a busy machine; nothing that works comes near it."""


@attrs.frozen
class User:
    """Somebody who is logged in.

    Attributes:
        http: sends their access token.
    """

    url: str
    http: httpx.AsyncClient
    user_id: str
    email: str
    access_token: str = attrs.field(repr=False)
    refresh_token: str = attrs.field(repr=False)

    async def thread(self, **fields: Any) -> str:
        """Make a conversation and return its id."""
        answer = await self.http.post("/v1/threads", json=fields)
        assert answer.status_code == 201, answer.text
        thread_id: str = answer.json()["thread_id"]
        return thread_id

    async def run(self, thread_id: str, content: str, **fields: Any) -> dict[str, Any]:
        """Run to the end, and return its outcome."""
        answer = await self.http.post(
            f"/v1/threads/{thread_id}/runs",
            params={"wait": "true"},
            json={"content": content, **fields},
            timeout=PATIENCE_SECONDS,
        )
        assert answer.status_code == 200, answer.text
        outcome: dict[str, Any] = answer.json()
        return outcome

    @asynccontextmanager
    async def socket(self, **options: Any) -> AsyncIterator[Socket]:
        """Open a socket, and read its first frame."""
        headers = [("Authorization", f"Bearer {self.access_token}")]
        async with open_socket(self.url, headers, **options) as socket:
            first = await socket.receive()
            assert first["type"] == "connection_established", first
            yield socket


class Socket:
    """A socket that speaks JSON."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self.connection = connection

    async def send(self, **frame: Any) -> None:
        """Send a frame with these fields."""
        await self.connection.send_message(json.dumps(frame))

    async def receive(self) -> dict[str, Any]:
        """Return the next frame."""
        with trio.fail_after(PATIENCE_SECONDS):
            frame: dict[str, Any] = json.loads(await self.connection.get_message())
        return frame

    async def until(self, *types: str) -> list[dict[str, Any]]:
        """Return the frames up to the first of one of these types."""
        frames = [await self.receive()]
        while frames[-1]["type"] not in types:
            frames.append(await self.receive())
        return frames

    async def close_code(self) -> int:
        """Read until the server closes, and return its code, -1 where it gave none."""
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                while True:
                    await self.connection.get_message()
            except trio_websocket.ConnectionClosed as closed:
                return -1 if closed.reason is None else closed.reason.code


@asynccontextmanager
async def open_socket(
    url: str,
    headers: Sequence[tuple[str, str]],
    *,
    subprotocols: Sequence[str] = ("nurseries.v1",),
    path: str = "/v1/ws",
    receive_buffer: int | None = None,
) -> AsyncIterator[Socket]:
    """Open a socket with these headers and subprotocols; a small `receive_buffer` (bytes) makes a slow reader."""
    host, _, port = url.removeprefix("http://").partition(":")
    # The stream is ours: trio-websocket leaves it open where the server closes first.
    plain = trio.socket.socket()
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await plain.connect((host, int(port)))
    async with trio.SocketStream(plain) as stream, trio.open_nursery() as nursery:
        connection = await trio_websocket.wrap_client_stream(
            nursery,
            stream,
            f"{host}:{port}",
            path,
            subprotocols=list(subprotocols),
            extra_headers=[(name.encode(), value.encode()) for name, value in headers],
        )
        yield Socket(connection)
        with trio.move_on_after(5):
            await connection.aclose()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def signed_up(url: str, email: str | None = None) -> AsyncIterator[User]:
    """Register and log in, for the body of the block."""
    email = email or f"{uuid4().hex}@example.org"
    # Loading the certificates of all authorities takes longer than most tests: only where they are looked at.
    verify = url.startswith("https:")
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, verify=verify) as http:
        registered = await http.post("/v1/auth/register", json={"email": email, "password": PASSWORD})
        assert registered.status_code == 201, registered.text
        pair = (await http.post("/v1/auth/login", json={"email": email, "password": PASSWORD})).json()
        http.headers["Authorization"] = f"Bearer {pair['access_token']}"
        yield User(
            url, http, registered.json()["user_id"], email, pair["access_token"], pair["refresh_token"]
        )
