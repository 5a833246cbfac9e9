"""`/v1/mcp`: the MCP servers whose tools there are, and a user's own tokens for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Blueprint, Response

from app.chat.calls import open_call
from app.errors import InvalidField, NotFound
from app.store import credentials as store
from app.tools.mcp.credentials import MAX_TOKEN
from app.web.authentication import require_identity
from app.web.bodies import Body, json_response, no_content, read_body

if TYPE_CHECKING:
    from app.accounts.service import AccountService
    from app.tools.mcp.settings import McpServer
    from app.tools.mcp.toolbox import Toolbox
    from nurseries.request import Kernel


class Token(Body, frozen=True):
    """What lets the user's requests in at a server."""

    token: str


def mcp_blueprint(service: AccountService, kernel: Kernel, toolbox: Toolbox) -> Blueprint:
    """Return the routes of the MCP servers; errors are left to `install_problems`."""
    mcp = Blueprint("mcp", __name__)

    def known(name: str) -> McpServer:
        """Return the server that takes a token of each user."""
        for server in toolbox.servers:
            if server.name == name and server.credential == "user":
                return server
        raise NotFound("no such server, or none that takes a token of yours")

    @mcp.get("/v1/mcp")
    async def describe() -> Response:
        identity = await require_identity(service)
        async with open_call(kernel, identity.user_id) as call:
            stored = await store.servers(call.database)
        return json_response(
            {
                "servers": [
                    {
                        "name": server.name,
                        "agents": list(server.agents),
                        "needs_token": server.credential == "user",
                        "has_token": server.credential == "user" and server.name in stored,
                    }
                    for server in toolbox.servers
                ]
            }
        )

    @mcp.put("/v1/mcp/<name>/token")
    async def put(name: str) -> Response:
        identity = await require_identity(service)
        server = known(name)
        token = (await read_body(Token)).token
        if not token or len(token) > MAX_TOKEN:
            raise InvalidField("token", f"must have 1 to {MAX_TOKEN} characters")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise InvalidField("token", "must be printable ASCII without spaces")
        async with open_call(kernel, identity.user_id) as call:
            await toolbox.vault.store(call.database, identity.user_id, server.name, token)
        return no_content()

    @mcp.delete("/v1/mcp/<name>/token")
    async def delete(name: str) -> Response:
        identity = await require_identity(service)
        server = known(name)
        async with open_call(kernel, identity.user_id) as call:
            if not await store.delete(call.database, server.name):
                raise NotFound("no token of yours is stored for this server")
        return no_content()

    return mcp
