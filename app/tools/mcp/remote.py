"""An MCP server that is reached over HTTP: a client of its own for each connection, with bounded answers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from app.tools.mcp.errors import McpUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.tools.mcp.settings import McpServer


@asynccontextmanager
async def remote_transport(server: McpServer, credential: str | None) -> AsyncIterator[tuple[Any, Any]]:
    """Have a client for the body of the block; yields the streams that the SDK reads and writes.

    Nothing of the client is shared: a connection that was authenticated by one user's token, a cookie or an
    answer on its way can reach nobody else.
    """
    import httpx2  # noqa: PLC0415  # see the package
    from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415

    async def bound(response: httpx2.Response) -> None:
        """Refuse an answer that says that it is too large, before it is read."""
        size = response.headers.get("content-length", "0")
        if size.isdecimal() and int(size) > server.message_bytes:
            raise McpUnavailable(f"an answer of the MCP server is larger than {server.message_bytes} bytes")

    headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
    timeout = httpx2.Timeout(server.start_seconds, read=server.call_seconds)
    limits = httpx2.Limits(max_connections=8)
    async with (
        httpx2.AsyncClient(
            headers=headers, timeout=timeout, limits=limits, event_hooks={"response": [bound]}
        ) as client,
        streamable_http_client(
            server.url, http_client=client, max_sse_event_size=server.message_bytes
        ) as streams,
    ):
        yield streams
