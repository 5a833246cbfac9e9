"""`nurseries serve`."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003  # cyclopts reads the annotations at run time
from typing import TYPE_CHECKING, Any

from app.logs import configure_logging
from app.main import serve
from app.settings import load_settings
from nurseries.errors import StartupFailed

if TYPE_CHECKING:
    from app.settings import Settings


async def serve_command(  # noqa: PLR0913  # a command has as many parameters as flags
    *,
    host: str | None = None,
    port: int | None = None,
    data_dir: Path | None = None,
    database_url: str | None = None,
    load_agent: bool | None = None,
    log_level: str | None = None,
    config: Path | None = None,
) -> int:
    """Run the server until SIGTERM or Ctrl-C, then drain it. A second signal ends at once.

    Every other setting has a NURSERIES_* variable and a place in the settings file; docs/operations.md lists them.

    Args:
        host: The address to listen on. [default: 127.0.0.1]
        port: The port; 0 picks a free one. [default: 8000]
        data_dir: Where the embedded database lives. [default: ~/.local/share/nurseries]
        database_url: An external PostgreSQL to use instead of the embedded one.
        load_agent: Offer the `load` agent, for measuring with `nurseries bench`.
        log_level: debug, info, warning or error. [default: info]
        config: A TOML file with settings.
    """
    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "database_url": database_url,
        "load_agent": load_agent,
        "log_level": log_level,
    }
    try:
        settings = load_settings({name: value for name, value in flags.items() if value is not None}, config)
        configure_logging(settings.log_level)
        await serve(settings, _announce_of(settings))
    except BaseException as error:  # what came out of a nursery is a group, of one or of several
        return _explain(error)
    return 0


def _announce_of(settings: Settings) -> Any:
    def announce(urls: list[str], signin_code: str | None) -> None:
        for url in urls:
            print(f"listening on {url}", flush=True)
        if signin_code is not None:
            print(f"sign in as the first user: {urls[0]}/#signin={signin_code}", flush=True)
        if settings.load_agent:
            print("the load agent is on: use it for measuring only", flush=True)

    return announce


def _explain(error: BaseException) -> int:
    """Say why the server ended; the exit status is 1 for a failure, 130 for a second Ctrl-C."""
    if isinstance(error, BaseExceptionGroup):
        interrupted, rest = error.split(KeyboardInterrupt)
        if rest is None:
            return 130
        startup, others = rest.split(StartupFailed)
        if others is not None:
            raise others
        assert startup is not None
        return max(_explain(each) for each in startup.exceptions)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, StartupFailed):
        print(f"nurseries: {error}", file=sys.stderr, flush=True)
        return 1
    raise error
