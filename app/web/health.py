"""How the server is: liveness, readiness and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
from quart import Blueprint, Response

from app.errors import Forbidden
from app.web.authentication import require_identity
from app.web.bodies import json_response
from app.web.metrics import exposition, process_memory
from app.web.problems import problem
from nurseries.errors import NurseriesError, PoolExhausted
from nurseries.inspect.orphans import HEALTH
from nurseries.postgres.scoped import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.accounts.service import AccountService
    from app.audit.trail import Trail
    from app.chat.journal import Journal
    from app.chat.runs import Runs
    from app.engine.models.cascade import ModelStatistics
    from app.leaks import Leaks
    from nurseries.events import Streams
    from nurseries.inspect import Audit
    from nurseries.isolation import Isolation
    from nurseries.postgres.pool import Pool
    from nurseries.request import Kernel
    from nurseries.server import Server
    from nurseries.serving import Listener

PROBE_SECONDS: Final = 2.0


@attrs.define(eq=False, kw_only=True)
class Vitals:
    """All that a health page looks at. `listener` is set when there is one: it serves these pages itself.

    Attributes:
        pools: those without which no call can be answered; each has a role and a breaker of its own.
    """

    pools: Sequence[Pool]
    service: AccountService
    server: Server
    kernel: Kernel
    journal: Journal
    runs: Runs
    streams: Streams
    isolation: Isolation
    audit: Audit
    leaks: Leaks
    trail: Trail
    models: Callable[[], Sequence[ModelStatistics]]
    metrics: str
    listener: Listener = attrs.field(init=False)

    async def unready(self) -> list[str]:
        """Return the reasons why no new work should be sent here."""
        reasons: list[str] = []
        if self.server.state != "ready":
            reasons.append(self.server.state)
        if not all([await _answers(pool) for pool in self.pools]):
            reasons.append("database unavailable")
        statistics = [pool.statistics() for pool in self.pools]
        if "open" in {state for each in statistics for state in (each.connecting.state, each.queueing.state)}:
            reasons.append("breaker open")
        return reasons

    def status(self) -> dict[str, Any]:
        """Return everything that is counted."""
        return {
            "health": self.isolation.health,
            "state": self.server.state,
            "pool": attrs.asdict(self.kernel.pool.statistics()),
            "budgets": {"requests": attrs.asdict(self.kernel.budget.statistics())},
            "breaker": attrs.asdict(self.kernel.pool.statistics().connecting),
            "sessions": {"open": len(self.server.sessions), "users": self.streams.users},
            "runs": {
                "open": len(self.runs),
                "asking": self.runs.asking,
                "requests": len(self.kernel.live.requests),
            },
            "models": [attrs.asdict(each) for each in self.models()],
            "event_log": attrs.asdict(self.journal.statistics()),
            "isolation": self.isolation.statistics(),
            "leaks": self.leaks.statistics(),
            "audit_trail": attrs.asdict(self.trail.statistics()),
            "serving": attrs.asdict(self.listener.statistics()),
            "memory": process_memory(),
        }


async def _answers(pool: Pool) -> bool:
    """Ask its database: a server that nobody uses cannot know otherwise when it is lost, nor when it is back."""
    if pool.statistics().utilization >= 1:
        return True  # it is busy; whether too busy is for the breaker to say
    try:
        with trio.fail_after(PROBE_SECONDS):
            await Database(pool, borrower=HEALTH).fetch_one("SELECT 1")
    except (NurseriesError, trio.TooSlowError) as error:
        return isinstance(error, PoolExhausted)
    return True


def health_blueprint(vitals: Vitals) -> Blueprint:
    """Return the routes of the operations; errors are left to `install_problems`."""
    health = Blueprint("health", __name__)

    @health.get("/health/live")
    async def live() -> Response:
        return json_response({"status": "alive"})

    @health.get("/health/ready")
    async def ready() -> Response:
        reasons = await vitals.unready()
        if not reasons:
            return json_response({"status": "ready", "reasons": []})
        return problem(503, "not_ready", ", ".join(reasons), headers={"Retry-After": "1"}, reasons=reasons)

    @health.get("/metrics")
    async def metrics() -> Response:
        if vitals.metrics == "admin":
            await require_identity(vitals.service, role="admin")
        elif vitals.metrics == "nobody":
            raise Forbidden("metrics are switched off")
        body, content_type = exposition(vitals)
        return Response(body, content_type=content_type)

    return health
