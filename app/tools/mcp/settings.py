"""Which MCP servers there are, and how they are reached."""

from __future__ import annotations

import re
import shutil
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from nurseries.errors import StartupFailed

_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,19}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_positive: Any = attrs.validators.gt(0)


def _name(_server: object, _attribute: attrs.Attribute[str], value: str) -> None:
    if not _NAME.fullmatch(value):
        raise ValueError("name: must be at most 20 lower case letters and digits, a letter first")


def _url(_server: object, _attribute: attrs.Attribute[str], value: str) -> None:
    if not value:
        return
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("url: must be like https://tools.example.org/mcp")
    if parts.username is not None or parts.password is not None:
        raise ValueError("url: must hold no password; a user's token is stored with credential = 'user'")


def _variables(_server: object, attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for each in value:
        if not _VARIABLE.fullmatch(each):
            raise ValueError(f"{attribute.name}: {each!r} is no name of a variable")


@attrs.frozen(kw_only=True)
class McpServer:
    """One MCP server: a program that we start (`command`), or one that is reached over HTTP (`url`).

    Attributes:
        name: its tools are called `<name>_<tool>`.
        command: the program and its arguments.
        url: the endpoint of a server that speaks streamable HTTP.
        scope: who owns a connection: each `request` one of its own, or each socket (`session`) one for all its
            requests. It ends with its owner.
        agents: the agents that are given its tools.
        tools: the tools that are offered, by the server's own names; all of them if none is named.
        approval: those of them that a person must approve, each time; `*` stands for all.
        credential: `user`, if each user stores a token of their own; it goes into the header Authorization, or
            into the variable `credential_variable` of the program. Without a stored token there are no tools.
        credential_variable: see above.
        environment: names of our own variables that the program is given besides PATH, HOME, LANG and TZ.
        directory: where the program runs, if not where the server does.
        start_seconds: how long connecting may take, with the listing of the tools.
        call_seconds: how long one call may take.
        message_bytes: how large one message of the server may be.
        connections: how many there may be at once, of all users.
    """

    name: str = attrs.field(validator=_name)
    command: tuple[str, ...] = ()
    url: str = attrs.field(default="", validator=_url)
    scope: str = attrs.field(default="request", validator=attrs.validators.in_(("request", "session")))
    agents: tuple[str, ...] = ("assistant",)
    tools: tuple[str, ...] = ()
    approval: tuple[str, ...] = ()
    credential: str = attrs.field(default="none", validator=attrs.validators.in_(("none", "user")))
    credential_variable: str = ""
    environment: tuple[str, ...] = attrs.field(default=(), validator=_variables)
    directory: str = ""
    start_seconds: float = attrs.field(default=20.0, validator=_positive)
    call_seconds: float = attrs.field(default=30.0, validator=_positive)
    message_bytes: int = attrs.field(default=4 * 1024 * 1024, validator=_positive)
    connections: int = attrs.field(default=50, validator=_positive)

    def __attrs_post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise ValueError("command, url: exactly one of them must be given")
        wants_variable = bool(self.command) and self.credential == "user"
        if wants_variable != bool(self.credential_variable):
            raise ValueError(
                "credential_variable: belongs to a command with credential = 'user', and only there"
            )
        if wants_variable and not _VARIABLE.fullmatch(self.credential_variable):
            raise ValueError(f"credential_variable: {self.credential_variable!r} is no name of a variable")

    def needs_approval(self, tool: str) -> bool:
        """Whether a person must approve each call of the server's `tool`."""
        return "*" in self.approval or tool in self.approval


def check_servers(servers: tuple[McpServer, ...], agents: frozenset[str]) -> None:
    """Find the mistakes that can be seen before anything is started.

    Raises:
        StartupFailed: two servers have one name, a program is not there, or an agent is not.
    """
    names: set[str] = set()
    for server in servers:
        if server.name in names:
            raise StartupFailed(f"mcp server {server.name}: there are two of this name")
        names.add(server.name)
        if server.command and shutil.which(server.command[0]) is None:
            raise StartupFailed(f"mcp server {server.name}: there is no program {server.command[0]!r}")
        if unknown := sorted(set(server.agents) - agents):
            raise StartupFailed(
                f"mcp server {server.name}: there is no agent {', '.join(map(repr, unknown))}"
            )
