"""A whole server in the process of its test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from app.accounts.settings import AccountSettings, HashCost
from app.main import serve
from app.settings import Settings
from app.testing.people import User, open_socket, signed_up
from nurseries.serving import ServingLimits
from nurseries.testing.isolation import listing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from app.testing.people import Socket
    from app.web.health import Vitals

CHEAP: Final = AccountSettings(hash_cost=HashCost(memory_kib=8, passes=1))
"""Passwords of people who are not there need no protection."""


UNHURRIED: Final = ServingLimits(requests_per_second=1e6, request_burst=10**6)
"""A test may ask as fast as it can, from one address for all of its users."""


@attrs.frozen
class RunningServer:
    """A server that listens.

    Attributes:
        url: where.
        vitals: its long-lived parts.
    """

    url: str
    vitals: Vitals

    def user(self, email: str | None = None) -> AbstractAsyncContextManager[User]:
        """Sign somebody up, for the body of the block."""
        return signed_up(self.url, email)

    def socket(self, *headers: tuple[str, str], **options: Any) -> AbstractAsyncContextManager[Socket]:
        """Open a socket with these headers only, such as none that say who it is."""
        return open_socket(self.url, headers, **options)

    async def assert_isolated(self) -> None:
        """Fail if any two users who have something open now both reach what either could change.

        Raises:
            AssertionError: they do; the message has the way to it from either side.
        """
        report = await self.vitals.audit.audit()
        assert not report.findings, listing(report.findings)
        assert report.truncated is None, f"the audit did not get through: {report.truncated}"


@asynccontextmanager
async def running(owner: str, **settings: Any) -> AsyncIterator[RunningServer]:
    """Serve on a free port for the body of the block.

    Args:
        owner: connection string of the database's owner.
        settings: what differs from a server for tests: any field of `Settings`.
    """
    listening = trio.Event()
    urls: list[str] = []
    looked: list[Vitals] = []

    def ready(bound: list[str], _code: str | None) -> None:
        urls.extend(bound)
        listening.set()

    defaults = {
        "port": 0,
        "database_url": owner,
        "load_agent": True,
        "accounts": CHEAP,
        "serving": UNHURRIED,
        "drain_seconds": 0,
    }
    start = partial(serve, Settings(**{**defaults, **settings}), ready, look=looked.append)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await listening.wait()
        yield RunningServer(urls[0], looked[0])
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running_server(owner: str, **settings: Any) -> AsyncIterator[str]:
    """As `running`; yields the URL."""
    async with running(owner, **settings) as server:
        yield server.url
