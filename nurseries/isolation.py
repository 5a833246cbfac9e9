"""Counting what must never happen. One finding turns the health of the server critical until somebody looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from nurseries.events import Event
    from nurseries.inspect import Finding, Report

MAX_KNOWN: Final = 1000
"""How many different findings are told apart; what comes after these is counted each time that it is found."""

logger = structlog.get_logger(__name__)


@attrs.define(eq=False)
class Isolation:
    """What the guards and the audits found since the start.

    Attributes:
        on_misdelivery: called with the session's id and the event that was not sent.
        on_finding: called once for each different finding. Neither may wait, or raise.
        misdeliveries_prevented: events that were about to reach somebody else, and were not sent.
        findings: different pieces of state that two users reached.
        audits: how many audits there were.
        truncated: those that did not get through all there was.
        last: the latest one.
    """

    on_misdelivery: Callable[[str, Event], object] | None = None
    on_finding: Callable[[Finding], object] | None = None
    misdeliveries_prevented: int = attrs.field(default=0, init=False)
    findings: int = attrs.field(default=0, init=False)
    audits: int = attrs.field(default=0, init=False)
    truncated: int = attrs.field(default=0, init=False)
    last: Report | None = attrs.field(default=None, init=False)
    _known: set[tuple[str, ...]] = attrs.field(factory=set, init=False)

    @property
    def health(self) -> Literal["healthy", "critical"]:
        """`critical` as soon as there is one finding: it says that the structure has a hole somewhere."""
        return "critical" if self.misdeliveries_prevented or self.findings else "healthy"

    def misdelivery_prevented(self, session_id: str, event: Event) -> None:
        """Count an event that the last look kept from leaving."""
        self.misdeliveries_prevented += 1
        logger.critical(
            "misdelivery prevented",
            connection_id=session_id,
            event_id=f"{event.thread_id}:{event.seq}",
            run_id=event.run_id,
        )
        if self.on_misdelivery is not None:
            self.on_misdelivery(session_id, event)

    def audited(self, report: Report) -> None:
        """Take note of an audit."""
        self.audits += 1
        self.truncated += report.truncated is not None
        self.last = report
        for finding in report.findings:
            self._found(finding)

    def _found(self, finding: Finding) -> None:
        """Count a finding, once: the same hole is there at every audit, and for every two users."""
        likeness = (finding.kind, finding.type, *(way for _, way in finding.paths))
        if likeness in self._known:
            return
        if len(self._known) < MAX_KNOWN:
            self._known.add(likeness)
        self.findings += 1
        logger.critical(
            "two users share state", kind=finding.kind, type=finding.type, paths=dict(finding.paths)
        )
        if self.on_finding is not None:
            self.on_finding(finding)

    def statistics(self) -> dict[str, Any]:
        """Return the counts, and the latest audit, as JSON can carry them."""
        return {
            "misdeliveries_prevented": self.misdeliveries_prevented,
            "findings": self.findings,
            "audits": self.audits,
            "truncated": self.truncated,
            "last": None if self.last is None else self.last.summary(),
        }
