"""What the audit trail may be told."""

from __future__ import annotations

from typing import Any

import attrs

_positive: Any = attrs.validators.gt(0)


@attrs.frozen
class AuditSettings:
    """Bounds of the trail.

    Attributes:
        keep_days: the age, in days, from which on entries are removed.
        window_seconds: for so long, equal events after the first are counted, and then told in one entry.
        different: events that are told apart in one window; more are counted by their kind alone.
        waiting: entries that may wait for the database; more are lost, which is counted, logged and told.
    """

    keep_days: float = attrs.field(
        default=90.0, validator=attrs.validators.and_(_positive, attrs.validators.le(36_500))
    )
    window_seconds: float = attrs.field(default=60.0, validator=_positive)
    different: int = attrs.field(default=2048, validator=_positive)
    waiting: int = attrs.field(default=4096, validator=_positive)
