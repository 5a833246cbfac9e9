"""The isolation audit of a server that runs: what any two of its users both reach, and either could change.

Between two steps of the walk everything goes on, so what is found is at first a suspicion: a connection that one
user gave back and another took meanwhile was never shared. Each suspicion is therefore looked at again, for its
two users alone, in one instant; only what is shared then is a finding.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import structlog
import trio

from nurseries.inspect.reach import Reach
from nurseries.inspect.roots import roots_of
from nurseries.inspect.sharing import Finding, TooManyObjects, Walk, shared_between

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from nurseries.inspect.kinds import Infrastructure
    from nurseries.isolation import Isolation

    Scopes = Mapping[str, Iterable[object]]

Bound = Literal["objects", "seconds", "suspicions"]

OBJECTS_AT_ONCE: Final = 1_000
"""Looked at between two checkpoints: about two milliseconds."""

OBJECTS_OF_TWO: Final = 50_000
"""Looked at in one instant, for a suspicion."""

SUSPICIONS: Final = 50
"""Pairs of users that are looked at again in one audit."""

logger = structlog.get_logger(__name__)


@attrs.frozen(kw_only=True)
class AuditBounds:
    """What one audit may cost.

    Attributes:
        objects: how many it looks at, all users together.
        seconds: how long it may take.
    """

    objects: int = 200_000
    seconds: float = 20.0


@attrs.frozen(kw_only=True)
class Report:
    """One audit.

    Attributes:
        at: when it began.
        seconds: how long it took, the others' work in between included.
        users: how many were looked at.
        objects: how many objects were looked at.
        findings: what two users shared.
        unconfirmed: pairs of users with a suspicion that could not be looked at again: one of them had left, or
            it was gone.
        truncated: what ended the audit before it was through: the bound on `objects`, on `seconds`, or on
            `suspicions`; None if it was through.
    """

    at: datetime
    seconds: float
    users: int
    objects: int
    findings: tuple[Finding, ...]
    unconfirmed: int
    truncated: Bound | None

    def summary(self) -> dict[str, Any]:
        """Return it as JSON can carry it."""
        return {
            "at": self.at.isoformat(),
            "seconds": round(self.seconds, 3),
            "users": self.users,
            "objects": self.objects,
            "findings": [
                {"kind": each.kind, "type": each.type, "paths": dict(each.paths)} for each in self.findings
            ],
            "unconfirmed": self.unconfirmed,
            "truncated": self.truncated,
        }


class Audit:
    """Audits one server, on demand and on a schedule.

    Args:
        scopes: returns, at every call, what each user has open now: requests, sessions, and whatever else.
        infrastructure: returns what users may share.
        isolation: takes note of what is found.
        bounds: of each audit.
    """

    def __init__(
        self,
        scopes: Callable[[], Scopes],
        infrastructure: Callable[[], Infrastructure],
        isolation: Isolation,
        bounds: AuditBounds,
    ) -> None:
        self._scopes = scopes
        self._infrastructure = infrastructure
        self._isolation = isolation
        self._bounds = bounds
        self._auditing = trio.Lock()

    async def run(self, seconds: float, *, task_status: trio.TaskStatus[None]) -> None:
        """Audit every so many seconds until cancelled; 0 stands for never."""
        task_status.started()
        while True:
            await trio.sleep(seconds or float("inf"))
            await self.audit()

    async def audit(self) -> Report:
        """Look at all users that have something open. One audit at a time; a second caller waits for its own."""
        async with self._auditing:
            report = await self._audit()
        self._isolation.audited(report)
        if report.truncated is not None:
            logger.warning("the isolation audit did not get through", bound=report.truncated)
        return report

    async def _audit(self) -> Report:
        at, started = datetime.now(UTC), trio.current_time()
        infrastructure = self._infrastructure()
        look = _Look(Walk(Reach(infrastructure)), self._bounds.objects, started + self._bounds.seconds)
        await look.at_all(dict(self._scopes()))
        findings, unconfirmed = dict[Finding, None](), 0
        truncated: Bound | None = look.truncated
        suspicions, users, objects = look.suspicions(), look.users, look.walk.objects
        del look  # and with it all that it held on to
        if len(suspicions) > SUSPICIONS:
            truncated = truncated or "suspicions"
        for pair in suspicions[:SUSPICIONS]:
            await trio.lowlevel.checkpoint()
            try:
                found = self._now(pair, infrastructure)
            except TooManyObjects:
                truncated = truncated or "objects"
                continue
            unconfirmed += not found
            findings |= dict.fromkeys(found)
        return Report(
            at=at,
            seconds=trio.current_time() - started,
            users=users,
            objects=objects,
            findings=tuple(findings),
            unconfirmed=unconfirmed,
            truncated=truncated,
        )

    def _now(self, pair: tuple[str, str], infrastructure: Infrastructure) -> list[Finding]:
        """Look at two users in this instant."""
        scopes = self._scopes()
        roots = {user: _roots(scopes[user]) for user in pair if user in scopes}
        return shared_between(roots, infrastructure=infrastructure, objects=OBJECTS_OF_TWO)


@attrs.define(eq=False)
class _Look:
    """The walk of one audit, within its bounds."""

    walk: Walk
    objects: int
    deadline: float
    users: int = 0
    truncated: Bound | None = None

    async def at_all(self, scopes: dict[str, Iterable[object]]) -> None:
        """Look at one user after the other, in another order each time, so that no bound always spares the same."""
        users = list(scopes)
        random.shuffle(users)
        for user in users:
            await trio.lowlevel.checkpoint()
            for root in _roots(scopes.pop(user)):
                self.walk.enter(user, root)
            self.users += 1
            while not self.walk.step(min(OBJECTS_AT_ONCE, self.objects - self.walk.objects)):
                await trio.lowlevel.checkpoint()
                if self._is_over():
                    return

    def _is_over(self) -> bool:
        if self.walk.objects >= self.objects:
            self.truncated = "objects"
        elif trio.current_time() >= self.deadline:
            self.truncated = "seconds"
        return self.truncated is not None

    def suspicions(self) -> list[tuple[str, str]]:
        """Return the pairs of users that seemed to share something."""
        return list(dict.fromkeys((shared.first, shared.second) for shared in self.walk.shared))


def _roots(things: Iterable[object]) -> Iterator[object]:
    for thing in things:
        yield from roots_of(thing)
