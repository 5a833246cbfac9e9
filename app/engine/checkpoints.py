"""How far a run has got: what is kept at each step, so that another server can go on with it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from app.tools.ledger import Forgetful, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from app.engine.request import Answer
    from app.tools.calls import ToolResult
    from nurseries.context import UserContext
    from nurseries.events import Emitter
    from nurseries.request import Failure


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


@attrs.define(eq=False, kw_only=True)
class Past:
    """What earlier lives have left of a run, or of a sub-agent in it; empty where there were none.

    Attributes:
        run_id: that its events carry.
        last: its last checkpoint.
        ended: how its calls ended, by call id.
        begun: the tools of its calls that were begun, by call id.
        outcome: how it ended itself; None if it was cut off.
        children: its sub-agents, by the call ids that it gave them.
        usage: what its sub-agents used, and how many there were (`sub_agents`).
    """

    run_id: str = ""
    last: Checkpoint | None = None
    ended: dict[str, ToolResult] = attrs.field(factory=dict)
    begun: dict[str, str] = attrs.field(factory=dict)
    outcome: Answer | Failure | None = None
    children: dict[str, Past] = attrs.field(factory=dict)
    usage: Counter[str] = attrs.field(factory=Counter)

    def tools(self) -> Iterator[str]:
        """Yield the tools of all calls that were begun, in sub-agents too."""
        yield from self.begun.values()
        for child in self.children.values():
            yield from child.tools()


class Checkpoints(Ledger, Protocol):
    """What outlives the server that a run runs in."""

    @property
    def past(self) -> Past:
        """What earlier lives have left."""

    @property
    def keeping(self) -> bool:
        """Whether the run could go on: its agent is resumable."""

    async def keep(self, output: str, state: bytes) -> None:
        """Make the next checkpoint; return when it, and all that was said before it, would survive.

        Raises:
            StateTooLarge: the run would keep more than it may.
        """

    async def child(self, context: UserContext, call_id: str | None, *, resumable: bool) -> Checkpoints:
        """Return those of a sub-agent, which go on from what is known under its call id if it is resumable.

        One that is not begins anew. Of its calls those stand that it makes under the same ids as before.
        """

    async def end(self, events: Emitter, event_type: str, payload: Mapping[str, Any]) -> None:
        """Tell how a sub-agent ended; from that moment on nothing else of it is kept."""


class NoCheckpoints(Forgetful):
    """Of a run that nobody will go on with."""

    keeping: bool = False

    def __init__(self) -> None:
        self.past = Past()

    async def keep(self, output: str, state: bytes) -> None:  # noqa: ARG002
        """Keep nothing."""
        await trio.lowlevel.checkpoint()

    async def child(self, context: UserContext, call_id: str | None, *, resumable: bool) -> NoCheckpoints:  # noqa: ARG002
        """Return others of the kind."""
        await trio.lowlevel.checkpoint()
        return NoCheckpoints()

    async def end(self, events: Emitter, event_type: str, payload: Mapping[str, Any]) -> None:
        """Tell how a sub-agent ended."""
        await events.emit(event_type, payload)
