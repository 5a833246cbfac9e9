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


@attrs.frozen
class RunSettings:
    """What runs may take.

    Attributes:
        message_characters: characters of one message of a user.
        queued_per_thread: runs that wait in one thread.
        running: runs that run at once, all users together; the others stay queued.
        running_per_user: the same for one user.
        requests: runs and calls that are open at once, all users together.
        requests_per_user: the same for one user.
    """

    message_characters: int = attrs.field(default=32_000, validator=_positive)
    queued_per_thread: int = attrs.field(default=20, validator=_positive)
    running: int = attrs.field(default=2_000, validator=_positive)
    running_per_user: int = attrs.field(default=8, validator=_positive)
    requests: int = attrs.field(default=5_000, validator=_positive)
    requests_per_user: int = attrs.field(default=200, validator=_positive)


@attrs.frozen
class Settings:
    """One server.

    Attributes:
        host: the address to listen on.
        port: the port; 0 picks a free one.
        data_dir: where the embedded database lives; `/var/lib/nurseries` for root.
        database_url: an external PostgreSQL; without it the embedded one is used.
        agents: a Python module whose agents are offered besides the built-in ones.
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
    serving: ServingLimits = attrs.field(factory=ServingLimits)
