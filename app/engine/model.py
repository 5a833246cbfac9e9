"""What an engine and a model say to each other, whoever's model it is.

A model gets a `Conversation` and answers with a stream of pieces. It holds no state of a conversation: all
that it knows is in what it is given, so that nothing can pass from one user to another through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from app.tools.calls import ToolResult
    from app.tools.schema import ToolDescription


# -- what a model says --------------------------------------------------------------------------------


@attrs.frozen
class TextPiece:
    """A piece of the answer."""

    text: str


@attrs.frozen
class ThinkingPiece:
    """A piece of what the model lets us see of its thinking; not part of the answer."""

    text: str


@attrs.frozen
class ToolCall:
    """The model asks for a tool.

    Attributes:
        call_id: the model's own name for this call.
        tool: the name it wrote, which may be none of ours.
        arguments: the JSON value it wrote, decoded; its text as it is where that is not JSON.
        opaque: what its model wants to see again together with this call, such as the signature of the thinking
            that led to it. JSON text for that model alone; empty for most.
    """

    call_id: str
    tool: str
    arguments: object
    opaque: str = ""


@attrs.frozen
class Usage:
    """What an answer cost, in the model's tokens; several in one answer add up.

    Attributes:
        model: the name of the model that answers. A piece without tokens only tells the name.
    """

    input_tokens: int
    output_tokens: int
    model: str = ""


Piece = TextPiece | ThinkingPiece | ToolCall | Usage


# -- what a model is told -----------------------------------------------------------------------------


@attrs.frozen
class UserTurn:
    """What the user wrote."""

    text: str


@attrs.frozen
class ModelTurn:
    """What the model said, and what tools it asked for."""

    text: str
    calls: tuple[ToolCall, ...] = ()


@attrs.frozen
class ToolTurn:
    """How the calls of the turn before ended, in their order; `call_id` is the model's own."""

    results: tuple[ToolResult, ...]


Turn = UserTurn | ModelTurn | ToolTurn


@attrs.frozen
class Conversation:
    """All that a model knows when it answers.

    Attributes:
        system: what it is here for.
        turns: the conversation, oldest first; the last one is to be answered.
        tools: what it may ask for.
    """

    system: str
    turns: tuple[Turn, ...]
    tools: tuple[ToolDescription, ...] = ()


class Model(Protocol):
    """A language model, or something that behaves like one."""

    def stream(self, conversation: Conversation) -> AbstractAsyncContextManager[AsyncIterator[Piece]]:
        """Open the answer to the last turn.

        Leaving the block ends the answer and frees what it held, at whatever piece it is left. Neither the
        block nor the iterator may hold a nursery or a cancel scope open while a piece is out: both are entered
        and iterated under time limits of other frames.
        """
        ...
