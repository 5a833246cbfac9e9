"""`nurseries serve`."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003  # cyclopts reads the annotations at run time
from typing import TYPE_CHECKING, Final

import structlog

from app.cli.failures import INTERRUPTED
from app.logs import configure_logging
from app.main import serve
from app.sources import load_settings, unknown_variables
from nurseries.errors import StartupFailed
from nurseries.groups import leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.settings import Settings

FAILED: Final = 1

logger = structlog.get_logger(__name__)


async def serve_command(  # noqa: PLR0913  # a command has as many parameters as flags
    *,
    host: str | None = None,
    port: int | None = None,
    data_dir: Path | None = None,
    database_url: str | None = None,
    agents: str | None = None,
    model: str | None = None,
    model_base_url: str | None = None,
    load_agent: bool | None = None,
    log_level: str | None = None,
    config: Path | None = None,
) -> int:
    """Run the server until SIGTERM or Ctrl-C, then drain it. A second signal ends at once.

    Every other setting has a NURSERIES_* variable and a place in the settings file; docs/operations.md lists them.

    Exits with 0 after a drain; 1 when it could not start or broke; 130 after a second signal.

    Args:
        host: The address to listen on. [default: 127.0.0.1]
        port: The port; 0 picks a free one. [default: 8000]
        data_dir: Where the embedded database lives. [default: ~/.local/share/nurseries]
        database_url: An external PostgreSQL to use instead of the embedded one.
        agents: A Python module, also of the current directory, whose agents are offered.
        model: The language model, like openai:gpt-5-mini or anthropic:claude-sonnet-4-5. [default: offline]
        model_base_url: Its endpoint, where it is not its provider's own, like http://127.0.0.1:11434/v1.
        load_agent: Offer the `load` agent, for measuring with `nurseries bench`.
        log_level: debug, info, warning or error. [default: info]
        config: A TOML file with settings.
    """
    flags = {
        "host": host,
        "port": port,
        "data_dir": data_dir,
        "database_url": database_url,
        "agents": agents,
        "model": model,
        "model_base_url": model_base_url,
        "load_agent": load_agent,
        "log_level": log_level,
    }
    try:
        settings = load_settings(flags, config)
        configure_logging(settings.log_level)
        for name in unknown_variables():
            logger.warning("this variable is no setting; it has no effect", variable=name)
        await serve(settings, _announce_of(settings))
    except BaseException as error:  # noqa: BLE001  # whatever ends the server is explained, and gives its exit status
        return _explain(error)
    return 0


def _announce_of(settings: Settings) -> Callable[[list[str], str | None], None]:
    def announce(urls: list[str], signin_code: str | None) -> None:
        for url in urls:
            print(f"listening on {url}", flush=True)
        if signin_code is not None:
            print(f"sign in as the first user: {urls[0]}/#signin={signin_code}", flush=True)
        logger.info("models", asked_in_this_order=[each.describe() for each in settings.all_models()])
        if not settings.model and not settings.models:
            logger.warning("no language model is configured: the assistant is offline")
        if settings.load_agent:
            logger.warning("the load agent is on: use it for measuring only")

    return announce


def _explain(error: BaseException) -> int:
    """Say why the server ended, and return its exit status.

    A failed start is explained in a line for people, anything else is logged with its traceback. A second
    signal interrupts whatever goes on, so that what fails then needs no explanation.
    """
    errors = list(leaves(error))
    if any(isinstance(each, KeyboardInterrupt) for each in errors):
        return INTERRUPTED
    if all(isinstance(each, StartupFailed) for each in errors):
        for each in errors:
            print(f"nurseries: {each}", file=sys.stderr, flush=True)
    else:
        logger.critical("the server broke", exc_info=error)
    return FAILED
