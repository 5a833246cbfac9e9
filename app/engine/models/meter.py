"""Which models answered one run, and what they cost."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from app.engine.errors import TooManyTokens
from app.engine.model import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.engine.model import Conversation, Model, Piece


class Meter:
    """Made for one run, and counts for as long as the run asks models, however it ends."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, int]] = {}

    def usage(self) -> dict[str, dict[str, int]]:
        """Return `{"input_tokens", "output_tokens"}` by the name of the model, in the order of their first answers."""
        return {name: dict(tokens) for name, tokens in self._models.items()}

    @property
    def tokens(self) -> int:
        """What all of them used together."""
        return sum(sum(tokens.values()) for tokens in self._models.values())

    def count(self, usage: Usage) -> None:
        """Add what one piece tells."""
        if usage.model:
            tokens = self._models.setdefault(usage.model, {"input_tokens": 0, "output_tokens": 0})
            tokens["input_tokens"] += usage.input_tokens
            tokens["output_tokens"] += usage.output_tokens


class MeteredModel:
    """A model whose answers a meter counts, and that is asked no more when they have used `tokens`.

    The meter is one run's, so that a run does not get more by having sub-agents ask.
    """

    def __init__(self, model: Model, meter: Meter, tokens: int) -> None:
        self._model = model
        self._meter = meter
        self._tokens = tokens

    @asynccontextmanager
    async def stream(self, conversation: Conversation) -> AsyncIterator[AsyncIterator[Piece]]:
        """Open the answer to the last turn.

        Raises:
            TooManyTokens: the run has used as many as a run may.
        """
        if self._meter.tokens >= self._tokens:
            raise TooManyTokens(f"the run has used {self._meter.tokens} tokens, and may use {self._tokens}")
        async with self._model.stream(conversation) as pieces:
            yield _Counted(pieces, self._meter)


class _Counted:
    def __init__(self, pieces: AsyncIterator[Piece], meter: Meter) -> None:
        self._pieces = pieces
        self._meter = meter

    def __aiter__(self) -> _Counted:
        return self

    async def __anext__(self) -> Piece:
        piece = await anext(self._pieces)
        if isinstance(piece, Usage):
            self._meter.count(piece)
        return piece
