"""MCP servers that are not ours: the protocol's reference server, as a child process and over HTTP."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from app.tools.mcp.settings import McpServer
from app.tools.mcp.toolbox import Toolbox
from nurseries.context import UserContext
from nurseries.ids import new_id
from tests.fixtures.node import node_package

SMALL = Path(__file__).with_name("small_server.py")


class Vault:
    """Tokens by user."""

    def __init__(self, **tokens: str) -> None:
        self.tokens = tokens

    async def token(self, _database, user_id, _server):
        await trio.lowlevel.checkpoint()
        return self.tokens.get(user_id)


class Program:
    """A remote MCP server, as a process of somebody else.

    Attributes:
        url: its endpoint.
    """

    def __init__(self, command: list, port: int, path: str = "/mcp") -> None:
        self.url = f"http://127.0.0.1:{port}{path}"
        self.port = port
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []

    def until(self, words: str) -> None:
        """Read what it says until it says this."""
        for line in self._process.stdout:
            self.said.append(line)
            if words in line:
                return
        raise AssertionError(f"the server ended without saying {words!r}: {''.join(self.said)}")

    async def hears(self, words: str) -> None:
        """Return when it has said this."""
        with trio.fail_after(30):
            await trio.to_thread.run_sync(self.until, words, abandon_on_cancel=True)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def everything() -> Path:
    """The reference server's program."""
    return node_package("@modelcontextprotocol/server-everything", "2026.8.31") / "dist" / "index.js"


@pytest.fixture
def child(everything) -> McpServer:
    """The reference server as a child process."""
    return McpServer(name="every", command=("node", str(everything), "stdio"))


@contextmanager
def program(command: list, words: str, port: int) -> Iterator[Program]:
    """Run a remote server for the body of the block."""
    running = Program(command, port)
    try:
        running.until(words)
        yield running
    finally:
        running.end()


@pytest.fixture
def remote_program(everything) -> Iterator[Program]:
    """The reference server over HTTP."""
    port = free_port()
    with program(["node", everything, "streamableHttp"], "listening on port", port) as running:
        yield running


@pytest.fixture
def small_program() -> Iterator[Program]:
    """The small server over HTTP."""
    port = free_port()
    with program([sys.executable, SMALL], "Uvicorn running", port) as running:
        yield running


@pytest.fixture
def remote(remote_program) -> McpServer:
    return McpServer(name="every", url=remote_program.url)


def asks(user_id: str = "ann", socket_id: str | None = None) -> UserContext:
    return UserContext(user_id=user_id, thread_id="t-1", run_id=new_id(), websocket_client_id=socket_id)


class Opened:
    """The tools of one request, by name."""

    def __init__(self, tools) -> None:
        self.tools = {tool.name: tool for tool in tools}

    async def call(self, name: str, **arguments):
        tool = self.tools[name]
        return await tool.function(None, tool.parse(arguments))


@asynccontextmanager
async def request(toolbox: Toolbox, context: UserContext | None = None) -> AsyncIterator[Opened]:
    """Have the tools that a request of the assistant would have."""
    async with toolbox.open(context or asks(), None, "assistant") as tools:
        yield Opened(tools)
