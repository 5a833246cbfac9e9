"""How far a run has got: what is kept at each step, so that another server can go on with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from app.tools.ledger import Forgetful, Ledger

if TYPE_CHECKING:
    from nurseries.context import UserContext


@attrs.frozen
class Checkpoint:
    """A point that a run can go on from.

    Attributes:
        step: how many checkpoints there were, with this one.
        output: the answer as it was then.
        state: what the agent kept, JSON.
    """

    step: int
    output: str
    state: bytes


class Checkpoints(Ledger, Protocol):
    """What outlives the server that a run runs in."""

    @property
    def last(self) -> Checkpoint | None:
        """The point that this run went on from; None in a run that began here."""

    @property
    def keeping(self) -> bool:
        """Whether the run could go on: its agent is resumable."""

    async def keep(self, output: str, state: bytes) -> None:
        """Make the next checkpoint; return when it, and all that was said before it, would survive.

        Raises:
            StateTooLarge: it is larger than a state may be.
        """

    def child(self, context: UserContext) -> Checkpoints:
        """Return those of an operation inside the run. Its calls can be approved, and are not resumed."""


class NoCheckpoints(Forgetful):
    """Of a run that nobody will go on with."""

    last: Checkpoint | None = None
    keeping: bool = False

    async def keep(self, output: str, state: bytes) -> None:  # noqa: ARG002
        """Keep nothing."""
        await trio.lowlevel.checkpoint()

    def child(self, context: UserContext) -> Checkpoints:  # noqa: ARG002
        """Return itself: it knows nothing of anybody."""
        return self
