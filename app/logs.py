"""Logging: one line an event, on standard error; JSON unless a person reads it at a terminal.

Our own log, that of the libraries and Python's warnings take the same way, so that whoever collects the lines can
parse every one of them.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from structlog.typing import Processor


def configure_logging(level: str) -> None:
    """Send everything to standard error: ours from `level` on, of the libraries warnings and what is worse."""
    threshold = getattr(logging, level.upper())
    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*common, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers()],
            foreign_pre_chain=common,
        )
    )
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)
    for name in ("app", "nurseries"):
        logging.getLogger(name).setLevel(threshold)
    logging.captureWarnings(True)


def _renderers() -> list[Processor]:
    """Return what makes a line. A traceback is one without the values of variables, which may be anybody's."""
    if sys.stderr.isatty():
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(exception_formatter=plain)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=_shown)]


def _shown(value: Any) -> str:
    return repr(value)
