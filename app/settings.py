"""All settings of the server, from flags, then `NURSERIES_*` variables, then a TOML file; frozen at start.

Nested settings are written with an underscore in a variable (`NURSERIES_POOL_SIZE=40`) and as a table in the
file, whose root table is `[nurseries]` (`[nurseries.pool]`, `size = 40`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import typed_settings as ts
from typed_settings.exceptions import TsError
from typed_settings.loaders import DictLoader, Loader

from app.accounts.settings import AccountSettings
from nurseries.errors import StartupFailed
from nurseries.serving import ServingLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "NURSERIES_"
CONFIG_VARIABLE: Final = "NURSERIES_CONFIG"
_positive: Any = attrs.validators.gt(0)
_not_negative: Any = attrs.validators.ge(0)


def _default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/nurseries")  # root's home is closed to the account that PostgreSQL runs as
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "nurseries"


def _secret(value: str | ts.SecretStr) -> ts.SecretStr:
    return value if isinstance(value, ts.SecretStr) else ts.SecretStr(value)


@attrs.frozen
class PoolSettings:
    """The pool of connections that requests use. Times are in seconds.

    Attributes:
        size: connections that stay open.
        overflow: connections beyond `size`, closed when they come back.
        per_user: connections that one user may hold at once.
        wait_seconds: how long a request waits for a connection before 503.
        waiters: how many may wait at once, all users together.
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
    statement_seconds: float = attrs.field(default=30.0, validator=_positive)


@attrs.frozen
class RunSettings:
    """What runs may take.

    Attributes:
        message_characters: of one user message.
        queued_per_thread: runs that wait in one thread.
        requests: open at once, all users together.
        requests_per_user: open at once, one user.
    """

    message_characters: int = attrs.field(default=32_000, validator=_positive)
    queued_per_thread: int = attrs.field(default=20, validator=_positive)
    requests: int = attrs.field(default=5_000, validator=_positive)
    requests_per_user: int = attrs.field(default=200, validator=_positive)


@attrs.frozen
class Settings:
    """One server.

    Attributes:
        host: the address to listen on.
        port: the port; 0 picks a free one.
        data_dir: where the embedded database lives.
        database_url: an external PostgreSQL; without it the embedded one is used.
        origins: origins that may open sockets from a browser, besides the server's own.
        sockets_per_user: open at once.
        load_agent: whether the `load` agent, for measuring, is there.
        drain_seconds: how long running requests may go on after SIGTERM.
        janitor_seconds: between two rounds of cleaning up.
        log_level: `debug`, `info`, `warning` or `error`.
        metrics: who may read `/metrics`: `anyone`, `admin` or `nobody`.
    """

    host: str = "127.0.0.1"
    port: int = attrs.field(
        default=8000, validator=attrs.validators.and_(attrs.validators.ge(0), attrs.validators.le(65535))
    )
    data_dir: Path = attrs.field(factory=_default_data_dir)
    database_url: ts.SecretStr = attrs.field(factory=lambda: ts.SecretStr(""), converter=_secret)
    origins: tuple[str, ...] = ()
    sockets_per_user: int = attrs.field(default=10, validator=_positive)
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


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Return the settings; `flags` are those given on the command line, by the name of the setting.

    Raises:
        StartupFailed: a setting is unknown or wrong; the message names it, with its value and source.
    """
    path = config or (Path(os.environ[CONFIG_VARIABLE]) if CONFIG_VARIABLE in os.environ else None)
    if path is not None and not path.is_file():
        raise StartupFailed(f"the settings file {path} does not exist")
    files = [str(path)] if path else []
    loaders: list[Loader] = [
        ts.FileLoader(formats={"*.toml": ts.TomlFormat("nurseries")}, files=files),
        ts.EnvLoader(prefix=PREFIX, nested_delimiter="_"),
        DictLoader(dict(flags)),
    ]
    try:
        return ts.load_settings(Settings, loaders=loaders)
    except TsError as error:
        errors = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
        raise StartupFailed("; ".join(_explain(each, flags, path) for each in errors)) from None


def _explain(error: BaseException, flags: Mapping[str, Any], path: Path | None) -> str:
    """Name the setting, its value and where it came from, which the library's message does in part."""
    text = str(error)
    found = re.search(r"option '([\w.]+)'|'(\w+)' must", text)
    if found is None:
        return text
    name = found[1] or found[2]
    for source, value in _sources(name, flags, path):
        return f"setting {name} = {value!r} from {source}: {_reason(text)}"
    return f"setting {name}: {_reason(text)}"


def _sources(name: str, flags: Mapping[str, Any], path: Path | None) -> list[tuple[str, Any]]:
    found = []
    if name in flags:
        found.append((f"the flag --{name.replace('_', '-')}", flags[name]))
    tail = name.replace(".", "_").upper()
    for variable in sorted(os.environ):
        if variable == PREFIX + tail or (
            variable.startswith(PREFIX) and variable.endswith("_" + tail) and "." not in name
        ):
            found.append((f"the variable {variable}", os.environ[variable]))
    if path is not None:
        found.append((f"the file {path}", "?"))
    return found


def _reason(text: str) -> str:
    inner = re.search(r'Error\("(.*)"\)$', text)
    return inner[1] if inner else text
