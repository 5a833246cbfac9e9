"""What an adapter of a provider is to the cascade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from app.engine.model import Conversation, Piece


@attrs.frozen
class Progress:
    """Something came that cannot be handed on yet, such as a part of a tool call: the model is alive."""


class Provider(Protocol):
    """One configured model. It holds connections and the key, and nothing of a user."""

    def stream(
        self, conversation: Conversation
    ) -> AbstractAsyncContextManager[AsyncIterator[Piece | Progress]]:
        """Open the answer, as `Model.stream` does.

        Raises:
            ModelFailure: on entering or at any piece.
        """
        ...

    def shared(self) -> tuple[type, ...]:
        """Return the types, its own among them, of what its users share by design."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
