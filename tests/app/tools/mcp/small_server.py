"""An MCP server made with the SDK: over HTTP on PORT where that is set, else over its pipes."""

import os

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("small")


@server.tool()
def token(ctx: Context) -> str:
    """Return the token and the cookie of the HTTP request."""
    headers = ctx.request_context.request.headers
    return headers.get("authorization", "none") + "|" + headers.get("cookie", "no cookie")


@server.tool()
def letters(count: int) -> str:
    """Return so many letters."""
    return "x" * count


if "PORT" in os.environ:
    server.run("streamable-http", port=int(os.environ["PORT"]))
else:
    server.run("stdio")
