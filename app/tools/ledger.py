"""What is remembered of a run's tool calls beyond its own end, as far as the dispatcher needs to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs
import trio

from nurseries.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.tools.calls import ToolResult

Decision = Literal["approve", "deny", "expired", "void"]
"""`void`: nobody needs it any more."""


class NobodyToAsk(CallerError):
    """The call needs a person's approval, and there is nobody who could be asked for it."""

    code = "approval_impossible"


@attrs.frozen
class Decided:
    """What was decided about a call, with what the person wrote to it."""

    decision: Decision
    note: str | None = None


class Ledger(Protocol):
    """The calls of one run, in all its lives: a run may go on in another server than it began in."""

    def result(self, call_id: str) -> ToolResult | None:
        """Return how the call ended in an earlier life of the run, if it did."""

    def begun(self, call_id: str, tool: str) -> bool:
        """Say whether the call was, or may have been, begun in an earlier life of the run."""

    async def committed(self) -> None:
        """Return when all that was told of the run so far would survive the server."""

    async def approval(self, call_id: str, tool: str, arguments: Mapping[str, Any]) -> Decided:
        """Ask the run's user, and return what was decided, in whatever life of the run.

        Raises:
            NobodyToAsk: there is nobody who could be asked.
        """


class Forgetful:
    """The ledger of calls that no later life of their run will ask for."""

    def result(self, call_id: str) -> ToolResult | None:  # noqa: ARG002
        """Return None."""
        return None

    def begun(self, call_id: str, tool: str) -> bool:  # noqa: ARG002
        """Say no."""
        return False

    async def committed(self) -> None:
        """Return at once: nothing has to survive."""
        await trio.lowlevel.checkpoint()

    async def approval(self, call_id: str, tool: str, arguments: Mapping[str, Any]) -> Decided:  # noqa: ARG002
        """Raise `NobodyToAsk`."""
        await trio.lowlevel.checkpoint()
        raise NobodyToAsk(f"the tool {tool} needs an approval, and nobody can give it here")
