"""What the scenarios stand on: kernels over a real database, whole servers with real sockets, and the isolation audit."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import attrs
import psycopg
import pytest
from _pytest.logging import LogCaptureHandler

import app.main
from app.web.health import Vitals
from nurseries.budgets import Budget, BudgetLimits
from nurseries.events import MemoryLog, Streams
from nurseries.inspect import KERNEL, Finding, roots_of, shared_between
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.request import Kernel, Live
from nurseries.serving import ServingLimits
from tests.app.conftest import House
from tests.fixtures.house import User, running_server, signed_up
from tests.scenarios import agents
from tests.scenarios.agents import Meeting

CROWD = ServingLimits(requests_per_second=100_000)
"""Every user of a scenario comes from one address."""

Housing = Callable[..., AbstractAsyncContextManager[House]]
Serving = Callable[..., AbstractAsyncContextManager["Served"]]


class Watch:
    """The isolation audit of one scenario.

    Attributes:
        looks: how many there were.
        findings: what two users shared in one of them.
    """

    def __init__(self) -> None:
        self.looks = 0
        self.findings: list[Finding] = []
        self._ways: dict[int, Callable[[], list[Finding]]] = {}

    def over(self, live: Live, look: Callable[[], list[Finding]]) -> None:
        """Look in this way at the users of the kernel with this list of open requests."""
        self._ways[id(live)] = look

    def no_more_over(self, live: Live) -> None:
        """Let go of a kernel that has ended."""
        del self._ways[id(live)]

    def opened(self, live: Live) -> None:
        """A request opened: look when there were 2, 4, 8 and so on, so that a crowd costs little more than a few."""
        if id(live) in self._ways and live.opened > 1 and live.opened & (live.opened - 1) == 0:
            self.look(id(live))

    def told(self) -> str:
        """Return the findings for people, each a line."""
        return "\n".join(map(str, self.findings))

    def look(self, *which: int) -> None:
        """Look now at one kernel, or at all."""
        for each in which or tuple(self._ways):
            self.looks += 1
            self.findings += self._ways[each]()


@pytest.fixture(autouse=True)
def watch(monkeypatch) -> Watch:
    """Audit the isolation of whatever a scenario runs, while it runs."""
    watch, add = Watch(), Live.add

    def watched(live, request):
        add(live, request)
        watch.opened(live)

    monkeypatch.setattr(Live, "add", watched)
    return watch


@pytest.fixture
def meet(watch, monkeypatch) -> Callable[[int], Meeting]:
    """Have so many runs meet in the middle of their work; once they are all there, they are audited."""

    def arrange(size: int) -> Meeting:
        meeting = Meeting(size, watch.look)
        monkeypatch.setattr(agents, "meeting", meeting)
        return meeting

    return arrange


@pytest.fixture
def housing(database, watch) -> Housing:
    """Open a kernel over this test's own database, with a pool as the scenario needs it."""

    @asynccontextmanager
    async def open_house(**limits: float) -> AsyncIterator[House]:
        streams = Streams()
        budget = Budget(BudgetLimits(total=200, per_user=50))
        with psycopg.connect(database.owner, autocommit=True) as owner:
            async with open_pool(database.request, PoolLimits(**limits)) as pool:
                kernel = Kernel(pool, MemoryLog(streams), budget)
                watch.over(kernel.live, lambda: _shared_in(kernel))
                yield House(owner, pool, streams, kernel)
                assert pool.statistics().checked_out == 0
                assert not watch.findings, watch.told()

    return open_house


def _shared_in(kernel: Kernel) -> list[Finding]:
    """Return what users share of their requests; what the tests themselves hold beside them is no part of that."""
    scopes: dict[str, list[object]] = {}
    for request in kernel.live.requests.values():
        scopes.setdefault(request.context.user_id, []).append(request)
    return shared_between(scopes, infrastructure=KERNEL)


@attrs.frozen
class Served:
    """A server in this process.

    Attributes:
        url: where it listens.
        owner: a connection that sees all rows.
        vitals: what its health page looks at; the way to its long-lived parts.
    """

    url: str
    owner: psycopg.Connection
    vitals: Vitals

    def user(self) -> AbstractAsyncContextManager[User]:
        """Sign somebody up, for the body of the block."""
        return signed_up(self.url)

    async def trail(self, kind: str) -> list[tuple[str | None, str | None, int]]:
        """Return whom the audit trail's entries of a kind name, who presented it, and how many events they stand for."""
        await self.vitals.trail.written()
        return self.owner.execute(
            "SELECT user_id::text, presented_by::text, count FROM audit WHERE kind = %s", (kind,)
        ).fetchall()


@pytest.fixture
def serving(database, watch, monkeypatch) -> Serving:
    """Run a server on this test's own database, with settings as the scenario needs them."""

    @asynccontextmanager
    async def serve(**settings: object) -> AsyncIterator[Served]:
        seen: list[Vitals] = []
        monkeypatch.setattr(app.main, "Vitals", lambda **parts: seen.append(Vitals(**parts)) or seen[0])
        with psycopg.connect(database.owner, autocommit=True) as owner:
            async with running_server(database.owner, **{"serving": CROWD, **settings}) as url:
                (vitals,) = seen
                watch.over(vitals.kernel.live, lambda: _shared_on(vitals))
                yield Served(url, owner, vitals)
                watch.look()
                assert not watch.findings, watch.told()

    return serve


def _shared_on(vitals: Vitals) -> list[Finding]:
    """Return what users share of all that they have open on a server."""
    audit = vitals.audit
    scopes = {
        user_id: [root for thing in things for root in roots_of(thing)]
        for user_id, things in audit._scopes().items()
    }
    return shared_between(scopes, infrastructure=audit._infrastructure().and_also(types=(Meeting,)))


@pytest.fixture
def forgotten_logs(monkeypatch) -> None:
    """Have pytest keep nothing of what is logged: with a traceback it would keep the frames of requests."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LogCaptureHandler):
            monkeypatch.setattr(handler, "level", logging.CRITICAL)
