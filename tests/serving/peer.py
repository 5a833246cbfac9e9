"""A client's raw connection, and what it can say on it, right or wrong."""

import base64
import ctypes
import socket
import struct
from contextlib import suppress

import trio

SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python does not name it
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
        self._sending = trio.Lock()  # a bystander speaks, and answers pings in another task

    async def send(self, data: bytes) -> None:
        async with self._sending:
            await self.stream.send_all(data)

    async def send_anyway(self, data: bytes) -> None:
        """Send, unless the server has hung up already."""
        with suppress(trio.BrokenResourceError):
            await self.send(data)

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

    @property
    def transport(self) -> trio.SocketStream:
        """What is below TLS, if there is TLS."""
        return getattr(self.stream, "transport_stream", self.stream)

    async def leave(self, how: str) -> None:
        """Hang up by a `close`, a `reset` or a `half-close`, without a farewell of TLS."""
        if how == "half-close":
            await self.transport.send_eof()
        elif how == "reset":
            await self.reset()
        else:
            await self.transport.aclose()

    async def reset(self) -> None:
        """Hang up with a RST, and without a farewell of TLS."""
        self.transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.transport.aclose()

    def vanish(self) -> None:
        """Be gone without a word: the system drops what comes from now on, and answers nothing.

        By a socket filter (socket(7), SO_ATTACH_FILTER) of one instruction, "take 0 bytes of it".
        """
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        program = struct.pack("HL", 1, ctypes.addressof(instruction))
        self.transport.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
