"""All settings of the server: frozen values, each with its default and its bounds.

`app.sources` reads them from flags, variables and a file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import attrs
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from app.accounts.settings import AccountSettings
from app.audit.settings import AuditSettings
from app.chat.settings import RunSettings
from app.engine.models.settings import ModelSettings, check_base_url, read_model
from app.tools.analysis.settings import FileSettings
from app.tools.mcp.settings import McpServer  # noqa: TC001  # app.sources reads the annotations at run time
from nurseries.errors import StartupFailed
from nurseries.events import OUTBOX_BYTES, OUTBOX_EVENTS
from nurseries.serving import ServingLimits
from nurseries.serving.peers import TrustedProxies

_positive: Any = attrs.validators.gt(0)
_not_negative: Any = attrs.validators.ge(0)
_ORIGIN: Final = re.compile(r"https?://[^/\s]+")


def _default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/nurseries")  # root's home is closed to the account that PostgreSQL runs as
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "nurseries"


def _conninfo(_settings: object, _attribute: attrs.Attribute[str], value: str) -> None:
    try:
        conninfo_to_dict(value)
    except ProgrammingError:  # its message quotes all of the string, and with it the password
        raise ValueError("must be like postgresql://USER:PASSWORD@HOST/DATABASE") from None


def _origins(_settings: object, _attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    for origin in value:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"must be like https://chat.example.org, not {origin}")


def _model(_settings: object, _attribute: attrs.Attribute[Any], value: str) -> None:
    if value:
        read_model(value)


def _models(_settings: object, _attribute: attrs.Attribute[Any], value: tuple[ModelSettings, ...]) -> None:
    names = [each.name for each in value]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"must have different names, but there are two {repeated}")


def _proxies(_settings: object, _attribute: attrs.Attribute[Any], value: tuple[str, ...]) -> None:
    TrustedProxies(value)


@attrs.frozen
class PoolSettings:
    """The pool of connections that requests use. Times are in seconds.

    Attributes:
        size: connections that stay open.
        overflow: connections beyond `size`, closed when they come back.
        per_user: connections that one user may hold at once.
        wait_seconds: how long a request waits for a connection before 503.
        waiters: requests that may wait for one at once, all users together.
        waiters_per_user: the same for one user.
        recycle_seconds: the age at which a connection is replaced.
        statement_seconds: how long one statement may take before the database ends it (504).
        lock_seconds: how long it may wait for somebody else's lock, within that (409).
    """

    size: int = attrs.field(default=20, validator=_positive)
    overflow: int = attrs.field(default=30, validator=_not_negative)
    per_user: int = attrs.field(default=5, validator=_positive)
    wait_seconds: float = attrs.field(default=30.0, validator=_positive)
    waiters: int = attrs.field(default=1000, validator=_positive)
    waiters_per_user: int = attrs.field(default=100, validator=_positive)
    recycle_seconds: float = attrs.field(default=3600.0, validator=_positive)
    statement_seconds: float = attrs.field(
        default=30.0, validator=attrs.validators.and_(attrs.validators.gt(0), attrs.validators.le(86_400))
    )
    lock_seconds: float = attrs.field(
        default=15.0, validator=attrs.validators.and_(attrs.validators.gt(0), attrs.validators.le(86_400))
    )


@attrs.frozen
class IsolationSettings:
    """The isolation audit: the search for anything that two users share. Times are in seconds.

    Attributes:
        every_seconds: between two audits; 0 stands for only on demand.
        objects: how many objects one audit looks at.
        seconds: how long one audit may take.
    """

    every_seconds: float = attrs.field(default=300.0, validator=_not_negative)
    objects: int = attrs.field(default=200_000, validator=_positive)
    seconds: float = attrs.field(default=20.0, validator=_positive)


@attrs.frozen
class Settings:
    """One server.

    Attributes:
        host: the address to listen on.
        port: the port; 0 picks a free one.
        data_dir: where the embedded database lives; `/var/lib/nurseries` for root.
        database_url: an external PostgreSQL; without it the embedded one is used.
        agents: a Python module whose agents are offered besides the built-in ones.
        model: the language model, like `openai:gpt-5-mini` or `anthropic:claude-sonnet-4-5`; it takes the place of
            the list of models.
        model_base_url: its endpoint, where it is not its provider's own, like `http://127.0.0.1:11434/v1`.
        model_api_key: its key; `OPENAI_API_KEY` or `ANTHROPIC_API_KEY` by default, at the provider's own endpoint.
        models: several models, asked in this order until one answers: tables `[[nurseries.models]]` of the file.
        mcp: MCP servers whose tools agents are given: tables `[[nurseries.mcp]]` of the file.
        origins: origins that may open sockets from a browser, besides the server's own.
        trusted_proxies: addresses and networks of the proxies whose `X-Forwarded-*` headers are believed.
        tls_certificate: a PEM file with the certificate and its chain, for HTTPS; read again at SIGHUP.
        tls_key: the PEM file with its private key.
        unix_path: a unix socket to listen on besides.
        sockets_per_user: sockets that one user may have open at once.
        outbox_events: events that may wait for one socket; one more closes it with 1013.
        outbox_bytes: bytes that may wait for one socket; more closes it with 1013.
        load_agent: whether the `load` agent, for measuring, is there.
        drain_seconds: how long runs may go on after SIGTERM.
        janitor_seconds: between two rounds of cleaning up.
        log_level: `debug`, `info`, `warning` or `error`.
        metrics: who may read `/metrics`: `anyone`, `admin` or `nobody`.
    """

    host: str = "127.0.0.1"
    port: int = attrs.field(
        default=8000, validator=attrs.validators.and_(attrs.validators.ge(0), attrs.validators.le(65535))
    )
    data_dir: Path = attrs.field(factory=_default_data_dir)
    database_url: str = attrs.field(default="", validator=_conninfo, repr=False)
    agents: str = ""
    model: str = attrs.field(default="", validator=_model)
    model_base_url: str = attrs.field(default="", validator=check_base_url)
    model_api_key: str = attrs.field(default="", repr=False)
    models: tuple[ModelSettings, ...] = attrs.field(default=(), validator=_models)
    mcp: tuple[McpServer, ...] = ()
    origins: tuple[str, ...] = attrs.field(default=(), validator=_origins)
    trusted_proxies: tuple[str, ...] = attrs.field(default=(), validator=_proxies)
    tls_certificate: str = ""
    tls_key: str = ""
    unix_path: str = ""
    sockets_per_user: int = attrs.field(default=10, validator=_positive)
    outbox_events: int = attrs.field(default=OUTBOX_EVENTS, validator=_positive)
    outbox_bytes: int = attrs.field(default=OUTBOX_BYTES, validator=_positive)
    load_agent: bool = False
    drain_seconds: float = attrs.field(default=20.0, validator=_not_negative)
    janitor_seconds: float = attrs.field(default=300.0, validator=_positive)
    log_level: str = attrs.field(
        default="info", validator=attrs.validators.in_(("debug", "info", "warning", "error"))
    )
    metrics: str = attrs.field(
        default="anyone", validator=attrs.validators.in_(("anyone", "admin", "nobody"))
    )
    pool: PoolSettings = attrs.field(factory=PoolSettings)
    runs: RunSettings = attrs.field(factory=RunSettings)
    accounts: AccountSettings = attrs.field(factory=AccountSettings)
    audit: AuditSettings = attrs.field(factory=AuditSettings)
    files: FileSettings = attrs.field(factory=FileSettings)
    serving: ServingLimits = attrs.field(factory=ServingLimits)
    isolation: IsolationSettings = attrs.field(factory=IsolationSettings)

    def all_models(self) -> tuple[ModelSettings, ...]:
        """Return the models in the order in which they are asked; where none is set, the offline one.

        Raises:
            StartupFailed: what belongs to `model` is set without it.
        """
        if self.model:
            return (read_model(self.model, self.model_base_url, self.model_api_key),)
        if self.model_base_url or self.model_api_key:
            name = "model_base_url" if self.model_base_url else "model_api_key"
            raise StartupFailed(f"{name} is set, but model is not")
        return self.models or (ModelSettings(kind="offline"),)
