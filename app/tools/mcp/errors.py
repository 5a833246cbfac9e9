"""What can go wrong with an MCP server, in words for its user and for the model."""

from __future__ import annotations

from nurseries.errors import CallerError, Unavailable


class McpUnavailable(Unavailable):
    """The server cannot be started or reached, has ended, or does not speak the protocol."""

    code = "mcp_unavailable"


class McpToolFailed(CallerError):
    """The server answered that the call failed; the message is the server's."""

    code = "mcp_tool_failed"
