"""How large the body of a request may be, and how long it may take: one rule for all, and paths that take more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen
class BodyLimit:
    """Bounds of one request's body.

    Attributes:
        size: bytes; more is 413.
        seconds: from the end of the headers to the end of the body; then 408.
    """

    size: int
    seconds: float


class BodyLimits:
    """The bounds of each path's bodies.

    Args:
        usual: of every path that is not named.
        paths: of those that take more, such as uploads. A path is compared as it is written in the request.
    """

    def __init__(self, usual: BodyLimit, paths: Mapping[str, BodyLimit]) -> None:
        self._usual = usual
        self._paths = {path.encode(): limit for path, limit in paths.items()}

    def of(self, target: bytes) -> BodyLimit:
        """Return the bounds for a request's target."""
        return self._paths.get(target.partition(b"?")[0], self._usual)
