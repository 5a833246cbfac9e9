"""Fitting a conversation into a model's window.

Tokens are estimated, since every model counts its own way: one for three bytes of UTF-8. That is a third too many
for English and about right for Chinese and for JSON, so that what is thought to fit does.
"""

from __future__ import annotations

from typing import Final

import attrs
import msgspec

from app.engine.model import Conversation, ModelTurn, ToolTurn, Turn, UserTurn

BYTES_PER_TOKEN: Final = 3
TOKENS_PER_TURN: Final = 8
"""What roles, names and separators cost."""

LEFT_OUT: Final = "\n\n(The beginning of this conversation is left out here: it does not fit any more.)"


def estimate_tokens(part: Turn | str) -> int:
    """Return about how many tokens a turn or a text takes."""
    match part:
        case str():
            size = len(part.encode(errors="replace"))
        case UserTurn():
            size = len(part.text.encode(errors="replace"))
        case ModelTurn():
            calls = sum(len(call.tool) + len(call.opaque) + len(_json(call.arguments)) for call in part.calls)
            size = len(part.text.encode(errors="replace")) + calls
        case ToolTurn():
            size = sum(len(_json(result.result)) + len(result.error) for result in part.results)
    return -(-size // BYTES_PER_TOKEN) + TOKENS_PER_TURN


def fit(conversation: Conversation, tokens: int) -> Conversation:
    """Return the conversation with as many of its latest turns as fit into so many tokens.

    What goes first are the oldest exchanges, each whole: a message of the user and all that answers it. Then, of the
    last exchange, the oldest calls with their results. The system prompt, the tools, the last message of the user
    and what follows the latest call are always kept, even if they do not fit. The system prompt says if something
    was left out.
    """
    turns = conversation.turns
    first_question = next((at for at, turn in enumerate(turns) if isinstance(turn, UserTurn)), 0)
    turns = turns[first_question:]  # providers want a conversation to begin with its user
    room = tokens - estimate_tokens(conversation.system)
    room -= sum(
        estimate_tokens(tool.name + tool.description + _json(tool.parameters).decode())
        for tool in conversation.tools
    )
    costs = [estimate_tokens(turn) for turn in turns]
    if sum(costs) <= room:
        return attrs.evolve(conversation, turns=turns)
    room -= estimate_tokens(LEFT_OUT)
    kept = _latest(turns, costs, room)
    return attrs.evolve(conversation, system=conversation.system + LEFT_OUT, turns=kept)


def _latest(turns: tuple[Turn, ...], costs: list[int], room: int) -> tuple[Turn, ...]:
    questions = [at for at, turn in enumerate(turns) if isinstance(turn, UserTurn)]
    last = questions[-1] if questions else 0
    for at in questions:
        if sum(costs[at:]) <= room:
            return turns[at:]
    # Not even the last exchange fits: its question, and of the steps after it the latest ones.
    steps = [at for at in range(last + 1, len(turns)) if isinstance(turns[at], ModelTurn)]
    room -= costs[last]
    for at in steps:
        if sum(costs[at:]) <= room:
            break
    else:
        at = steps[-1] if steps else last + 1
    return (turns[last], *turns[at:])


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
