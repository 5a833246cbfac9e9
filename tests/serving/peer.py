"""A client's raw connection, and what it can say on it, right or wrong."""

import base64
import socket
import struct
from contextlib import suppress

import trio

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = base64.b64encode(b"0123456789abcdef")
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: test\r\n"


def frame(
    payload: bytes = b"",
    opcode: int = TEXT,
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x01\x02\x03\x04",
    length: int | None = None,
) -> bytes:
    """Return a client's frame; `length` lies about the payload's."""
    size = len(payload) if length is None else length
    head = bytes((fin << 7 | rsv << 4 | opcode,))
    masked = 0x80 if mask is not None else 0
    if size < 126:
        head += bytes((masked | size,))
    elif size < 65_536:
        head += bytes((masked | 126,)) + struct.pack("!H", size)
    else:
        head += bytes((masked | 127,)) + struct.pack("!Q", size)
    if mask is None:
        return head + payload
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    body = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(len(payload), "big")
    return head + mask + body


class Peer:
    """A client's raw connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def send_anyway(self, data: bytes) -> None:
        """Send, unless the server has hung up already."""
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(data)

    async def more(self) -> bool:
        """Read; tell whether there was something."""
        try:
            data = await self.stream.receive_some(65_536)
        except trio.BrokenResourceError:
            return False
        self.buffer += data
        return bool(data)

    async def take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not await self.more():
                raise EOFError
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    async def rest(self) -> bytes:
        """Read to the end."""
        while await self.more():
            pass
        data, self.buffer = self.buffer, b""
        return data

    async def head(self) -> bytes:
        while b"\r\n\r\n" not in self.buffer:
            if not await self.more():
                break
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    async def response(self) -> tuple[int, bytes, bytes]:
        """Return status, head and body of a response with a Content-Length."""
        head = await self.head()
        if not head:
            raise EOFError
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return int(head.split(b" ")[1]), head, await self.take(length)

    async def status(self) -> int:
        """Return the status of the next response, 0 when the connection was closed without one."""
        try:
            return (await self.response())[0]
        except EOFError:
            return 0

    async def frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame."""
        first, second = await self.take(2)
        size = second & 127
        if size == 126:
            (size,) = struct.unpack("!H", await self.take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.take(8))
        return first & 15, await self.take(size)

    async def close_code(self) -> int:
        """Return the code of the close frame, 1006 when there is none; other frames are skipped."""
        try:
            while True:
                opcode, payload = await self.frame()
                if opcode == CLOSE:
                    return struct.unpack("!H", payload[:2])[0] if payload else 1005
        except EOFError:
            return 1006

    async def echo(self, text: bytes) -> bytes:
        """Send a text and return the next text that comes."""
        await self.send(frame(text))
        while True:
            opcode, payload = await self.frame()
            if opcode == TEXT:
                return payload

    async def reset(self) -> None:
        """Hang up with a RST, and without a farewell of TLS."""
        stream = getattr(self.stream, "transport_stream", self.stream)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
