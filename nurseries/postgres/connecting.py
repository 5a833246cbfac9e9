"""Opening a session: names resolved, hosts tried in order, on Trio and within `connect_timeout`.

libpq does the TLS handshake and the authentication, driven by its polling interface (PostgreSQL manual, 34.1).
It would resolve names by a blocking call and ignores its own timeout in this mode; both are done here.
"""

from __future__ import annotations

import logging
import random
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import psycopg
import trio
from psycopg import pq
from psycopg._conninfo_utils import get_param, is_ip_address, split_attempts
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo

from nurseries.errors import DatabaseUnavailable
from nurseries.postgres import parking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from psycopg.abc import ConnDict
    from psycopg.pq.abc import PGcancelConn, PGconn

logger = logging.getLogger(__name__)

_DEFAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "connect_timeout": "10",
        "fallback_application_name": "nurseries",
        # A peer that vanished without a word is noticed after about a minute, not after two hours.
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
    }
)
# What the loaders of rows count on. As options of the session they are also what RESET returns to.
_OPTIONS: Final = "-c TimeZone=UTC -c DateStyle=ISO -c bytea_output=hex -c standard_conforming_strings=on"


async def connect(conninfo: str) -> PGconn:
    """Return a connected, non-blocking libpq connection; the first host that answers wins.

    Raises:
        DatabaseUnavailable: no host could be reached or none let us in; the message says why for each.
    """
    reasons: list[str] = []
    try:
        parameters: ConnDict = {**_DEFAULTS, **conninfo_to_dict(conninfo), "client_encoding": "UTF8"}
        parameters["options"] = f"{_OPTIONS} {get_param(parameters, 'options') or ''}".strip()
        timeout = timeout_from_conninfo(parameters)
        for attempt in await _attempts(parameters, reasons):
            try:
                with trio.fail_after(timeout):
                    return await _connect(attempt)
            except trio.TooSlowError:
                reasons.append(f"no answer within {timeout} s from {_address(attempt)}")
            except psycopg.Error as error:
                reasons.append(str(error))
                logger.debug("connecting failed: %s", error)
    except psycopg.Error as error:  # the conninfo itself is at fault
        raise DatabaseUnavailable(str(error)) from error
    raise DatabaseUnavailable("; ".join(reasons))


async def _connect(parameters: ConnDict) -> PGconn:
    pgconn = pq.PGconn.connect_start(make_conninfo("", **parameters).encode())
    try:
        await _poll_until_ready(pgconn, pgconn.connect_poll)
    except BaseException:
        pgconn.finish()
        raise
    pgconn.nonblocking = 1
    return pgconn


async def request_cancel(pgconn: PGconn) -> None:
    """Ask the server to cancel what the session is running, and wait until it has passed the request on.

    It comes on a connection of its own, with the same encryption. When this returns the signal has been
    sent, so it cannot hit a later statement; whether it hit this one is not known (34.7).
    """
    request = pgconn.cancel_conn()
    try:
        request.start()
        await _poll_until_ready(request, request.poll)
    finally:
        request.finish()


async def _poll_until_ready(handle: PGconn | PGcancelConn, poll: Callable[[], int]) -> None:
    while (status := poll()) != pq.PollingStatus.OK:
        if status == pq.PollingStatus.READING:
            await parking.readable(handle.socket)
        elif status == pq.PollingStatus.WRITING:
            await parking.writable(handle.socket)
        else:
            raise psycopg.OperationalError(handle.get_error_message().strip())


async def _attempts(parameters: ConnDict, reasons: list[str]) -> list[ConnDict]:
    """Return one set of parameters for each address to try; hosts that have none go into `reasons`."""
    prefer_standby = get_param(parameters, "target_session_attrs") == "prefer-standby"
    if prefer_standby:
        parameters = {**parameters, "target_session_attrs": "any"}
    attempts: list[ConnDict] = []
    for attempt in split_attempts(parameters):
        try:
            attempts += await _resolved(attempt)
        except OSError as error:
            reasons.append(f"host {attempt.get('host')!r} cannot be resolved: {error}")
    if get_param(parameters, "load_balance_hosts") == "random":
        random.shuffle(attempts)
    if prefer_standby:  # libpq's own rule for several hosts: standbys first, then whatever is there
        attempts = [{**attempt, "target_session_attrs": "standby"} for attempt in attempts] + attempts
    return attempts


async def _resolved(attempt: ConnDict) -> list[ConnDict]:
    host = get_param(attempt, "host")
    if not host or host.startswith(("/", "@")) or get_param(attempt, "hostaddr"):
        return [attempt]  # a unix socket, or already an address
    if is_ip_address(host):
        return [{**attempt, "hostaddr": host}]
    port = get_param(attempt, "port") or "5432"
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [{**attempt, "hostaddr": str(address[0])} for *_, address in found]


def _address(attempt: ConnDict) -> str:
    return f"{get_param(attempt, 'hostaddr') or get_param(attempt, 'host')}:{get_param(attempt, 'port')}"
