"""The loop between a model and its tools, which ends with the model's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import msgspec

from app.engine.errors import TooManySteps, TooManyTokens
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
from app.engine.request import Answer
from app.tools.calls import ToolResult
from app.tools.clip import clip
from nurseries.ids import new_id

if TYPE_CHECKING:
    from app.engine.request import AgentRequest

_CALL_SIZE: Final = 100
"""Characters that a tool call counts for, so that a stream of nothing but calls ends as well."""

_ARGUMENT_BYTES: Final = 1024 * 1024
"""What is kept of arguments that have no JSON form as they are; more than any tool takes."""


async def converse(request: AgentRequest, system: str) -> Answer:
    """Ask the request's model until it answers without asking for tools.

    The answer is what it said over all steps. What goes beyond `RunLimits.output_characters` is cut off,
    and the answer says so.

    A run that goes on after its server was lost begins behind the last answer of the model that was kept; calls
    of it that have ended are not made again.

    Raises:
        TooManySteps: it still asked for tools in its last step.
        TooManyTokens: it asked for tools, and had used all of `RunLimits.tokens`.
    """
    return await _Loop(request, system).run()


@attrs.frozen
class _Step:
    """One answer of the model, with our ids of those of its calls that are made."""

    turn: ModelTurn
    call_ids: tuple[str, ...] = ()

    def calls(self) -> list[ToolCall]:
        """Return the calls to make. Models name their calls as they like, and alike in every step."""
        return [
            attrs.evolve(call, call_id=call_id)
            for call, call_id in zip(self.turn.calls, self.call_ids, strict=False)
        ]


@attrs.frozen
class _State:
    """What a run must know to go on, besides how its calls ended, which its ledger knows."""

    steps: tuple[_Step, ...]
    usage: dict[str, int]
    room: int
    model: str = ""


class _Loop:
    """One run: the turns so far, and what has been used."""

    def __init__(self, request: AgentRequest, system: str) -> None:
        self._request = request
        self._limits = request.limits
        self._system = system
        self._turns: list[Turn] = []
        usage = {"input_tokens": 0, "output_tokens": 0, "steps": 0, "tool_calls": 0}
        state = request.resumed(_State) or _State((), usage, request.limits.output_characters)
        self._steps, self._usage, self._room = list(state.steps), state.usage, state.room
        self._model = state.model

    async def run(self) -> Answer:
        for message in await self._request.history(self._limits.history_messages):
            self._turns.append(
                UserTurn(message.content) if message.role == "user" else ModelTurn(message.content)
            )
        self._turns.append(UserTurn(self._request.content))
        for step in self._steps:
            await self._act(step)
        while True:
            step = await self._ask()
            if self._room <= 0:
                await self._request.say(
                    f"\n\n[Cut off: a run may say {self._limits.output_characters} characters.]"
                )
                break
            if not step.turn.calls:
                break
            self._check()
            self._steps.append(step)
            # Before the calls are made: whoever goes on with the run must know them by their ids.
            await self._request.checkpoint(_State(tuple(self._steps), self._usage, self._room, self._model))
            await self._act(step)
        return Answer(self._request.said(), self._usage | ({"model": self._model} if self._model else {}))

    def _check(self) -> None:
        """Refuse to go on to another step if that would be one too many."""
        if self._usage["steps"] >= self._limits.steps:
            raise TooManySteps(f"no answer after {self._limits.steps} steps")
        if self._usage["input_tokens"] + self._usage["output_tokens"] >= self._limits.tokens:
            raise TooManyTokens(f"no answer after {self._limits.tokens} tokens")

    async def _ask(self) -> _Step:
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
                        calls.append(_plain(piece))
                    case Usage():
                        self._usage["input_tokens"] += piece.input_tokens
                        self._usage["output_tokens"] += piece.output_tokens
                        self._model = piece.model or self._model
                if self._room <= 0:
                    break
        call_ids = tuple(new_id() for _ in calls[: self._limits.calls_per_step])
        self._usage["tool_calls"] += len(call_ids)
        if refused := len(calls) - len(call_ids):
            await self._request.think(
                f"{refused} more tool calls were not made: at most {len(call_ids)} in one step."
            )
        return _Step(ModelTurn("".join(text), tuple(calls)), call_ids)

    def _take(self, text: str) -> str:
        """Return as much of `text` as there is room for."""
        text = text[: self._room]
        self._room -= len(text)
        return text

    async def _act(self, step: _Step) -> None:
        """Make the calls of one step at the same time; those beyond the limit are refused, and the model is told."""
        calls = step.turn.calls
        made = [
            attrs.evolve(result, call_id=call.call_id)
            for result, call in zip(await self._request.tools.call_many(step.calls()), calls, strict=False)
        ]
        error = f"not made: at most {len(made)} calls in one step"
        refused = [
            ToolResult(call.call_id, call.tool, ok=False, milliseconds=0, error=error)
            for call in calls[len(made) :]
        ]
        self._turns += [step.turn, ToolTurn((*made, *refused))]


def _plain(call: ToolCall) -> ToolCall:
    """Return the call with arguments that can be written down; what cannot, no tool takes."""
    try:
        msgspec.json.encode(call.arguments)
    except (TypeError, ValueError, RecursionError):
        return attrs.evolve(call, arguments=_clipped(call.arguments))
    return call


def _clipped(arguments: object) -> object:
    try:
        return clip(arguments, _ARGUMENT_BYTES).value
    except TypeError:
        return None
