"""Counting what must never happen. One finding turns the health of the server critical until somebody looks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import structlog

if TYPE_CHECKING:
    from nurseries.events import Event

logger = structlog.get_logger(__name__)


@attrs.define
class Isolation:
    """What the guards found since the start.

    Attributes:
        misdeliveries_prevented: events that were about to reach somebody else, and were not sent.
    """

    misdeliveries_prevented: int = 0

    @property
    def health(self) -> Literal["healthy", "critical"]:
        """`critical` as soon as there is one finding: it says that the structure has a hole somewhere."""
        return "critical" if self.misdeliveries_prevented else "healthy"

    def misdelivery_prevented(self, session_id: str, event: Event) -> None:
        """Count an event that the last look kept from leaving."""
        self.misdeliveries_prevented += 1
        logger.critical(
            "misdelivery prevented",
            connection_id=session_id,
            event_id=f"{event.thread_id}:{event.seq}",
            run_id=event.run_id,
        )
