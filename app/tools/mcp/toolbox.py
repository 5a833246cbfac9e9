"""What a request gets of the MCP servers: their tools, called through links of its own."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import structlog
import trio

from app.tools.clip import clean_text, clip
from app.tools.mcp.errors import McpUnavailable
from app.tools.mcp.link import Link, Places
from app.tools.schema import JSONSchema, Tool
from nurseries.cleanup import cleanup_scope
from nurseries.groups import alone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from app.tools.mcp.credentials import TokenVault
    from app.tools.mcp.settings import McpServer
    from nurseries.context import UserContext
    from nurseries.postgres.scoped import ScopedDatabase

LISTING_SECONDS: Final = 300.0
"""How long what a server said of its tools is believed."""

HANG_UP_SECONDS: Final = 0.5
"""How long a remote server may take to hear that its client goes."""

MAX_SCHEMA_BYTES: Final = 16 * 1024
MAX_DESCRIPTION: Final = 2000
_MAX_NAME: Final = 64
_UNFIT: Final = re.compile(r"[^a-z0-9_]")
logger = structlog.get_logger(__name__)


@attrs.frozen
class Offer:
    """A tool of a server: its own name there, what a model is told, and whether a call may be made again."""

    original: str
    name: str
    description: str
    schema: JSONSchema
    repeatable: bool


class _Links:
    """The links of one owner: a request, or a socket."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._links: dict[str, Link] = {}

    def get(self, server: McpServer, credential: str | None, places: Places) -> Link:
        """Return the owner's link to the server; none is connected before it is used."""
        link = self._links.get(server.name)
        if link is None or not link.opened_with(credential):
            link = self._links[server.name] = Link(server, credential, places, self._nursery)
        return link

    async def hang_up(self) -> None:
        """Take leave of all servers, so that remote ones keep no session; who does not listen is left."""
        with cleanup_scope(HANG_UP_SECONDS):
            for link in self._links.values():
                await link.close()
        for link in self._links.values():
            link.cut()


class Toolbox:
    """The MCP servers of this process. It holds connections of nobody: those are their owners'.

    Attributes:
        servers: as the settings name them.
        vault: the tokens that users stored for them.
    """

    def __init__(self, servers: Sequence[McpServer], vault: TokenVault) -> None:
        self.servers = tuple(servers)
        self.vault = vault
        self._places = {server.name: Places(server) for server in servers}
        # What servers that know no user say of their tools, and when they said it.
        self._listings: dict[str, tuple[float, tuple[Offer, ...]]] = {}
        self._sessions: dict[str, _Links] = {}
        self._with_sessions = any(server.scope == "session" for server in servers)
        if servers:
            import_module("mcp")  # now, since it takes a second in which nobody would be served

    def shared(self) -> tuple[type, ...]:
        """Return the types of what the SDK shares between connections: compiled schemas, its name, no-op tracing."""
        if not self.servers:
            return ()
        from mcp.types import Implementation  # noqa: PLC0415  # see the package
        from opentelemetry.trace import NonRecordingSpan, ProxyTracer  # noqa: PLC0415
        from pydantic import TypeAdapter  # noqa: PLC0415

        return (Implementation, NonRecordingSpan, ProxyTracer, TypeAdapter)

    @asynccontextmanager
    async def session(self, socket_id: str) -> AsyncIterator[None]:
        """Own the connections of one socket for the body of the block."""
        if not self._with_sessions:
            yield
            return
        with alone():
            async with trio.open_nursery() as nursery:
                links = self._sessions[socket_id] = _Links(nursery)
                try:
                    yield
                finally:
                    del self._sessions[socket_id]
                    await links.hang_up()

    @asynccontextmanager
    async def open(
        self, context: UserContext, database: ScopedDatabase, agent: str
    ) -> AsyncIterator[tuple[Tool, ...]]:
        """Have the tools of the agent's servers for the body of the block; all connections made for it end with it.

        A server that cannot say what tools it has is left out, and the log says so: the request goes on without.
        """
        servers = [server for server in self.servers if agent in server.agents]
        if not servers:
            yield ()
            return
        with alone():
            async with trio.open_nursery() as nursery:
                own = _Links(nursery)
                try:
                    tools: list[Tool] = []
                    for server in servers:
                        tools += await self._tools(server, own, context, database)
                    yield tuple(tools)
                finally:
                    await own.hang_up()

    async def _tools(
        self, server: McpServer, own: _Links, context: UserContext, database: ScopedDatabase
    ) -> list[Tool]:
        token = None
        if server.credential == "user":
            token = await self.vault.token(database, context.user_id, server.name)
            if token is None:
                return []
        owner = own
        if server.scope == "session" and context.websocket_client_id is not None:
            # A run that outlives its socket goes on with links of its own.
            owner = self._sessions.get(context.websocket_client_id, own)
        link = owner.get(server, token, self._places[server.name])
        try:
            offers = await self._offers(server, link)
        except McpUnavailable as error:
            logger.warning("an MCP server's tools are left out", server=server.name, reason=str(error))
            return []
        return [_tool(server, offer, link) for offer in offers]

    async def _offers(self, server: McpServer, link: Link) -> tuple[Offer, ...]:
        """Return what the server offers; from memory where every user is offered the same."""
        listed = self._listings.get(server.name)
        if listed is not None and trio.current_time() - listed[0] < LISTING_SECONDS:
            return listed[1]
        offers = _fit(server, await link.list_tools())
        if server.credential == "none":
            self._listings[server.name] = (trio.current_time(), offers)
        return offers


def _fit(server: McpServer, described: Sequence[Any]) -> tuple[Offer, ...]:
    """Return the tools under names that models may call them by; what cannot be offered is left out and logged."""
    offers: dict[str, Offer] = {}
    for each in described:
        if server.tools and each.name not in server.tools:
            continue
        name = f"{server.name}_{_UNFIT.sub('_', each.name.lower())}"[:_MAX_NAME]
        schema = clip(each.input_schema, MAX_SCHEMA_BYTES)
        if name in offers or schema.truncated:
            reason = "its name is taken" if name in offers else "its schema is too large"
            logger.warning("an MCP tool is left out", server=server.name, tool=each.name, reason=reason)
            continue
        description = clean_text((each.description or each.name)[:MAX_DESCRIPTION])
        hints = each.annotations
        repeatable = hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)
        offers[name] = Offer(
            each.name, name, description, JSONSchema(msgspec.json.encode(schema.value)), repeatable
        )
    if missing := sorted(set(server.tools) - {offer.original for offer in offers.values()}):
        logger.warning("an MCP server lacks tools of the settings", server=server.name, tools=missing)
    return tuple(offers.values())


def _tool(server: McpServer, offer: Offer, link: Link) -> Tool:
    async def call(_context: object, arguments: dict[str, Any]) -> Any:
        return await link.call(offer.original, arguments)

    return Tool(
        offer.name,
        offer.description,
        offer.schema,
        call,
        seconds=server.start_seconds + server.call_seconds + 1,  # the link's own limits come first
        approval=server.needs_approval(offer.original),
        repeatable=offer.repeatable,
    )
