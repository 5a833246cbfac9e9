"""An MCP server that is a child process: one JSON message a line, over its stdin and stdout.

The SDK has such a transport, too. This one is here for the end of the child: it is killed with all that it
started as soon as its owner ends, without a grace that a hung server would use up, and the kernel kills it if
we are killed ourselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import structlog
import trio

from app.tools.mcp.errors import McpUnavailable
from nurseries.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.tools.mcp.settings import McpServer

KILL_SECONDS: Final = 2.0
"""How long the kernel may take to end a process that was killed."""

PASSED_ON: Final = ("PATH", "HOME", "LANG", "TZ")
logger = structlog.get_logger(__name__)


@asynccontextmanager
async def child_transport(server: McpServer, credential: str | None) -> AsyncIterator[tuple[Any, Any]]:
    """Run the server's program for the body of the block; yields the streams that the SDK reads and writes.

    Raises:
        McpUnavailable: the program cannot be started.
    """
    environment = {name: os.environ[name] for name in (*PASSED_ON, *server.environment) if name in os.environ}
    if credential is not None:
        environment[server.credential_variable] = credential
    try:
        process = ChildProcess(
            server.command,
            environment=environment,
            log=subprocess.DEVNULL,  # it may quote what users wrote
            death_signal=signal.SIGKILL,
            pipes=True,
            directory=server.directory or Path.cwd(),
        )
    except OSError as error:
        logger.warning("an MCP server cannot be started", server=server.name, error=error.strerror)
        raise McpUnavailable(f"the MCP server {server.name} cannot be started") from error
    try:
        async with process.stdin, process.stdout:
            yield _Reader(process.stdout, server.message_bytes), _Writer(process.stdin)
    finally:
        process.kill_session()
        await process.stop((signal.SIGKILL, KILL_SECONDS))


class _Stream:
    """What the SDK asks of both directions: a context that closes."""

    def __init__(self, stream: trio.lowlevel.FdStream) -> None:
        self._stream = stream

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()


class _Reader(_Stream):
    """Messages of the server. They end where it ends, closes its output, or says something that is none."""

    def __init__(self, stream: trio.lowlevel.FdStream, limit: int) -> None:
        super().__init__(stream)
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        from mcp.shared.message import SessionMessage  # noqa: PLC0415  # see the package
        from mcp.types import jsonrpc_message_adapter  # noqa: PLC0415

        line = await self._line()
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError as error:  # programs write to their output what belongs to their log
            return error

    async def receive(self) -> Any:
        return await self.__anext__()

    async def _line(self) -> bytes:
        while True:
            end = self._buffer.find(b"\n", self._searched)
            self._searched = len(self._buffer)
            if (end if end >= 0 else self._searched) > self._limit:
                raise McpUnavailable(f"a message of the MCP server is larger than {self._limit} bytes")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                return line
            try:
                more = await self._stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                more = b""
            if not more:
                raise StopAsyncIteration
            self._buffer += more


class _Writer(_Stream):
    """Messages to the server, one after the other, whole or not at all."""

    def __init__(self, stream: trio.lowlevel.FdStream) -> None:
        super().__init__(stream)
        self._turn = trio.Lock()

    async def send(self, message: Any, /) -> None:
        data = message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        async with self._turn:
            try:
                await self._stream.send_all(data)
            except trio.Cancelled:
                await self._stream.aclose()  # half a message stands in the pipe
                raise
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise McpUnavailable("the MCP server has ended") from error
