"""What all users share in the kernel, by design: each of these keeps users apart itself, or knows of none."""

from __future__ import annotations

import logging
import ssl
from typing import Final

import structlog
from psycopg.adapt import AdaptersMap
from psycopg.types import TypesRegistry

from nurseries.breaker import Breaker
from nurseries.budgets import Budget
from nurseries.events import MemoryLog, Streams
from nurseries.inspect.kinds import Infrastructure
from nurseries.isolation import Isolation
from nurseries.postgres.pool import Pool
from nurseries.request import Kernel, Live
from nurseries.server import Server, Sessions

KERNEL: Final = Infrastructure(
    types=(
        Kernel,  # the list of what requests are made from
        Live,  # by request id
        Pool,  # lends a connection to one borrower at a time, and keeps it only if it is clean
        Budget,  # by user
        Breaker,  # counts failures, of nobody in particular
        Streams,  # by user
        MemoryLog,  # by thread
        Isolation,  # counts
        Server,  # the root
        Sessions,  # a set, of which each session knows nothing
        AdaptersMap,  # psycopg's table of types: a connection that changes it gets a copy
        TypesRegistry,
        logging.Logger,
        type(structlog.get_logger()),  # a proxy that makes a logger for each line
        ssl.SSLContext,  # certificates
    ),
    code=frozenset({"nurseries"}),
)
