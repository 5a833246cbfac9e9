"""The loop between a model and its tools, which ends with the model's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from app.engine.agent import Answer
from app.engine.errors import TooManySteps
from app.engine.model import (
    Conversation,
    ModelTurn,
    TextPiece,
    ThinkingPiece,
    ToolCall,
    ToolTurn,
    Turn,
    Usage,
    UserTurn,
)
from app.tools.dispatcher import ToolResult
from nurseries.ids import new_id

if TYPE_CHECKING:
    from app.engine.agent import AgentRequest

_CALL_SIZE: Final = 100
"""Characters that a tool call counts for, so that a stream of nothing but calls ends as well."""


async def converse(request: AgentRequest, system: str) -> Answer:
    """Ask the request's model until it answers without asking for tools.

    The answer is what it said over all steps. What goes beyond `RunLimits.output_characters` is cut off,
    and the answer says so.

    Raises:
        TooManySteps: it still asked for tools in its last step.
    """
    return await _Loop(request, system).run()


class _Loop:
    """The state of one run: the turns so far, and what has been used."""

    def __init__(self, request: AgentRequest, system: str) -> None:
        self._request = request
        self._limits = request.limits
        self._system = system
        self._turns: list[Turn] = []
        self._room = request.limits.output_characters
        self._usage = {"input_tokens": 0, "output_tokens": 0, "steps": 0, "tool_calls": 0}

    async def run(self) -> Answer:
        for message in await self._request.history(self._limits.history_messages):
            self._turns.append(
                UserTurn(message.content) if message.role == "user" else ModelTurn(message.content)
            )
        self._turns.append(UserTurn(self._request.content))
        for _ in range(self._limits.steps):
            turn = await self._ask()
            if self._room <= 0:
                await self._request.say(
                    f"\n\n[Cut off: a run may say {self._limits.output_characters} characters.]"
                )
                break
            if not turn.calls:
                break
            self._turns += [turn, ToolTurn(await self._call(turn.calls))]
        else:
            raise TooManySteps(f"no answer after {self._limits.steps} steps")
        return Answer(self._request.said(), self._usage)

    async def _ask(self) -> ModelTurn:
        """Stream one answer of the model to the user, and return it."""
        self._usage["steps"] += 1
        conversation = Conversation(self._system, tuple(self._turns), self._request.tools.descriptions())
        text: list[str] = []
        calls: list[ToolCall] = []
        async with self._request.model.stream(conversation) as pieces:
            async for piece in pieces:
                match piece:
                    case TextPiece():
                        text.append(self._take(piece.text))
                        await self._request.say(text[-1])
                    case ThinkingPiece():
                        await self._request.think(self._take(piece.text))
                    case ToolCall():
                        self._room -= _CALL_SIZE
                        calls.append(piece)
                    case Usage():
                        self._usage["input_tokens"] += piece.input_tokens
                        self._usage["output_tokens"] += piece.output_tokens
                if self._room <= 0:
                    break
        return ModelTurn("".join(text), tuple(calls))

    def _take(self, text: str) -> str:
        """Return as much of `text` as there is room for."""
        text = text[: self._room]
        self._room -= len(text)
        return text

    async def _call(self, calls: tuple[ToolCall, ...]) -> tuple[ToolResult, ...]:
        """Call the tools of one step at the same time; those beyond the limit are refused, and the model is told."""
        # Models name their calls as they like, and alike in every step; what leaves here has ids of our own.
        ours = [attrs.evolve(call, call_id=new_id()) for call in calls[: self._limits.calls_per_step]]
        self._usage["tool_calls"] += len(ours)
        results = await self._request.tools.call_many(ours)
        made = [
            attrs.evolve(result, call_id=call.call_id) for result, call in zip(results, calls, strict=False)
        ]
        refused = calls[len(ours) :]
        if refused:
            await self._request.think(
                f"{len(refused)} more tool calls were not made: at most {len(ours)} in one step."
            )
        error = f"not made: at most {len(ours)} calls in one step"
        return (
            *made,
            *(ToolResult(call.call_id, call.tool, ok=False, milliseconds=0, error=error) for call in refused),
        )
