"""What becomes of a part of an agent's work that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import attrs
import trio

from app.engine.errors import AgentFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

MAX_RETRIES: Final = 5
_RETRY_SECONDS: Final = (0.2, 1.0, 3.0, 5.0, 5.0)


def _seconds(_policy: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise ValueError(f"{attribute.name} must be positive and finite, or None")


@attrs.frozen(kw_only=True)
class Policy:
    """How often a part is tried, how long each try may take, and what happens when none succeeds.

    Attributes:
        retries: further tries after the first, with a growing pause before each.
        on_failure: `end` fails the run, `skip` goes on without.
        seconds: the time limit of each try, a person's time to approve a call included; None for no other limit than
            the run's.
    """

    retries: int = attrs.field(
        default=0,
        validator=[
            attrs.validators.instance_of(int),
            attrs.validators.ge(0),
            attrs.validators.le(MAX_RETRIES),
        ],
    )
    on_failure: Literal["end", "skip"] = attrs.field(
        default="end", validator=attrs.validators.in_(("end", "skip"))
    )
    seconds: float | None = attrs.field(default=None, validator=_seconds)

    async def attempt(self, call_id: str, work: Callable[[str], Awaitable[T]]) -> T:
        """Return what `work` returns, trying as often as declared; each try has a call id of its own.

        Raises:
            AgentFailed: the last try failed. What else `work` raises is no failure of the part, and not tried again.
        """
        for number, pause in enumerate(_RETRY_SECONDS[: self.retries], 1):
            try:
                return await work(call_id if number == 1 else f"{call_id}.{number}")
            except AgentFailed:
                await trio.sleep(pause)
        return await work(f"{call_id}.{self.retries + 1}" if self.retries else call_id)
