"""One connection to an MCP server. It belongs to one request or one socket, and what breaks in it breaks alone."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from app.tools.mcp.child import child_transport
from app.tools.mcp.errors import McpToolFailed, McpUnavailable
from app.tools.mcp.remote import remote_transport
from nurseries.groups import leaves

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mcp import Client

    from app.tools.mcp.settings import McpServer

MAX_TOOLS: Final = 200
MAX_PAGES: Final = 20
EXPLAIN_SECONDS: Final = 0.5
"""How long a broken connection may take to end, and so to tell why."""

logger = structlog.get_logger(__name__)


class Places:
    """The connections to one server that there may be at once, of all users. It knows none of them."""

    def __init__(self, server: McpServer) -> None:
        self._server = server
        self._limiter = trio.CapacityLimiter(server.connections)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold a place for the body of the block.

        Raises:
            McpUnavailable: none came free in the time that connecting may take.
        """
        borrower = object()
        with trio.move_on_after(self._server.start_seconds) as patience:
            await self._limiter.acquire_on_behalf_of(borrower)
        if patience.cancelled_caught:
            raise McpUnavailable(f"the MCP server {self._server.name} has too many connections")
        try:
            yield
        finally:
            self._limiter.release_on_behalf_of(borrower)


class Link:
    """A connection that is made when it is first needed, and again after it broke, for as long as its owner lives.

    Args:
        server: what it connects to.
        credential: the token of the user that it belongs to.
        places: bounds the connections to this server, of all users.
        nursery: of the owner.
    """

    def __init__(
        self, server: McpServer, credential: str | None, places: Places, nursery: trio.Nursery
    ) -> None:
        self.server = server
        self._credential = credential
        self._places = places
        self._nursery = nursery
        self._attempt: _Attempt | None = None

    def opened_with(self, credential: str | None) -> bool:
        """Whether this is the token that the link uses: one that was replaced must not be used any more."""
        return self._credential == credential

    async def list_tools(self) -> list[Any]:
        """Return the server's tools, as the SDK describes them; a bounded number of them.

        Raises:
            McpUnavailable: they cannot be had.
        """
        attempt = await self._connected()
        found: list[Any] = []
        cursor: str | None = None
        async with attempt.faults():
            with trio.move_on_after(self.server.start_seconds):
                for _ in range(MAX_PAGES):
                    page = await attempt.client.list_tools(cursor=cursor)
                    found += page.tools
                    cursor = page.next_cursor
                    if cursor is None or len(found) >= MAX_TOOLS:
                        break
                return found[:MAX_TOOLS]
        raise McpUnavailable(f"the MCP server {self.server.name} does not say what tools it has")

    async def call(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Call a tool and return its result as JSON values.

        Raises:
            McpToolFailed: the server says that it failed.
            McpUnavailable: the server cannot be reached, or ended before it answered.
        """
        attempt = await self._connected()
        answer = None
        async with attempt.faults():
            with trio.move_on_after(self.server.call_seconds):
                answer = await attempt.client.call_tool(tool, arguments)
        if answer is None:  # the connection stays: other calls may be on it
            raise McpUnavailable(
                f"the MCP server {self.server.name} did not answer within {self.server.call_seconds:g} seconds"
            )
        if answer.is_error:
            raise McpToolFailed(_text(answer.content) or "the MCP server gave no reason")
        return answer.structured_content if answer.structured_content is not None else _text(answer.content)

    async def close(self) -> None:
        """Take leave of the server, and return when the connection has ended."""
        if self._attempt is not None:
            self._attempt.end()
            await self._attempt.gone.wait()

    def cut(self) -> None:
        """End the connection where it stands. Its owner must do this in any case: no cancellation reaches it."""
        if self._attempt is not None:
            self._attempt.scope.cancel()

    async def _connected(self) -> _Attempt:
        attempt = self._attempt
        if attempt is None or attempt.ended:
            attempt = self._attempt = _Attempt(self.server, self._credential, self._places)
            self._nursery.start_soon(attempt.run, name=f"mcp {self.server.name}")
        await attempt.ready.wait()
        if attempt.ended:
            raise McpUnavailable(attempt.reason)
        return attempt


class _Attempt:
    """One try to connect, and the connection that came of it.

    Attributes:
        client: of the SDK; there once `ready` is set and not `ended`.
        ready: set when it is connected, or could not be.
        ended: nothing more can be asked.
        gone: set when all of it has ended.
        scope: ends it where it stands.
        reason: why it ended, for people.
    """

    client: Client

    def __init__(self, server: McpServer, credential: str | None, places: Places) -> None:
        self._server = server
        self._credential = credential
        self._places = places
        self._over = trio.Event()
        # A cancelled request still takes leave of its servers, so what cancels it does not reach in here.
        self.scope = trio.CancelScope(shield=True)
        self.gone = trio.Event()
        self.ready = trio.Event()
        self.ended = False
        self.reason = f"the MCP server {server.name} has ended"

    async def run(self) -> None:
        """Connect, and stay until the connection breaks. No fault of the server leaves this task."""
        try:
            with self.scope:
                async with self._places.hold(), _connection(self._server, self._credential) as self.client:
                    self.ready.set()
                    await self._over.wait()
        except Exception as error:  # noqa: BLE001  # the barrier: a server that breaks ends its link, nobody's request
            self._explain(error)
        finally:
            self.ended = True
            self.ready.set()
            self.gone.set()

    def _explain(self, error: BaseException) -> None:
        faults = list(leaves(error))
        names = sorted({type(fault).__name__ for fault in faults})
        logger.warning("an MCP server broke", server=self._server.name, errors=names)
        if not self.ready.is_set():
            self.reason = f"the MCP server {self._server.name} cannot be reached"
        for fault in faults:
            if isinstance(fault, McpUnavailable):
                self.reason = str(fault)

    @asynccontextmanager
    async def faults(self) -> AsyncIterator[None]:
        """Turn what the SDK raises into errors of ours, and end a connection that is broken.

        Raises:
            McpToolFailed: the server refused.
            McpUnavailable: the connection is lost.
        """
        from mcp.shared.exceptions import MCPError  # noqa: PLC0415  # see the package
        from mcp.types import CONNECTION_CLOSED  # noqa: PLC0415

        try:
            yield
        except Exception as error:
            if isinstance(error, MCPError) and error.error.code != CONNECTION_CLOSED:
                raise McpToolFailed(error.error.message) from error
            self.end()
            with trio.move_on_after(EXPLAIN_SECONDS):
                await self.gone.wait()  # it knows why
            raise McpUnavailable(self.reason) from error

    def end(self) -> None:
        """Ask nothing more of this connection; one that is still being made is given up."""
        self.ended = True
        self._over.set()
        if not self.ready.is_set():
            self.scope.cancel()


@asynccontextmanager
async def _connection(server: McpServer, credential: str | None) -> AsyncIterator[Client]:
    from mcp import Client  # noqa: PLC0415  # see the package

    transport = child_transport if server.command else remote_transport
    with trio.CancelScope() as connecting:
        connecting.deadline = trio.current_time() + server.start_seconds
        async with Client(transport(server, credential), cache=None) as client:
            connecting.deadline = float("inf")
            yield client
    if connecting.cancelled_caught:
        raise McpUnavailable(
            f"the MCP server {server.name} did not answer within {server.start_seconds:g} seconds"
        )


def _text(content: list[Any]) -> str:
    """Return the text of an answer, and the place of what is none."""
    parts = [block.text if block.type == "text" else f"[{block.type} left out]" for block in content]
    return "\n".join(parts)
