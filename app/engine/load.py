"""The agent that does as much as it is told, for measuring a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import msgspec
import trio
from msgspec import Meta

from app.engine.agent import Agent
from app.engine.errors import InvalidOrder
from app.engine.request import Answer

if TYPE_CHECKING:
    from app.engine.request import AgentRequest

MAX_BYTES: Final = 1024 * 1024
"""How long an answer may be in all."""

_QUERY: Final = "SELECT role, content FROM messages WHERE thread_id = $1::uuid ORDER BY position DESC LIMIT 1"


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much to do.

    Attributes:
        events: pieces of the answer.
        queries: small queries on the user's own rows, before the answer, one after the other.
        delta_bytes: the size of each piece.
        sleep_ms: a pause between the queries and the answer, as for a model that thinks.
    """

    events: Annotated[int, Meta(ge=0, le=10_000)] = 20
    queries: Annotated[int, Meta(ge=0, le=1_000)] = 2
    delta_bytes: Annotated[int, Meta(ge=1, le=65_536)] = 32
    sleep_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0


_decode: Final = msgspec.json.Decoder(Order).decode


def read_order(content: str) -> Order:
    """Return the order that a message holds.

    Raises:
        InvalidOrder: it is not such a JSON object; the message names the field.
    """
    try:
        order = _decode(content)
    except (msgspec.MsgspecError, UnicodeEncodeError) as error:
        raise InvalidOrder("content", f"not an order for `load`: {error}") from None
    if order.events * order.delta_bytes > MAX_BYTES:
        raise InvalidOrder("content", f"not an order for `load`: events * delta_bytes is above {MAX_BYTES}")
    return order


class Load(Agent):
    """Queries, a pause, and an answer of given size in given pieces, with nothing else on the way."""

    name: ClassVar[str] = "load"
    description: ClassVar[str] = (
        'Does what {"events", "queries", "delta_bytes", "sleep_ms"} says, for measuring.'
    )

    async def run(self, request: AgentRequest) -> Answer:
        """Do as much as the message says. Each piece begins with the user's id, so that a stray one shows."""
        order = read_order(request.content)
        thread_id = request.context.thread_id
        for _ in range(order.queries):
            await request.database.fetch(_QUERY, thread_id)
        if order.sleep_ms:
            await trio.sleep(order.sleep_ms / 1000)
        piece = f"{request.context.user_id} ".ljust(order.delta_bytes, ".")[: order.delta_bytes]
        for _ in range(order.events):
            await request.say(piece)
        return Answer(request.said(), {"events": order.events, "queries": order.queries})
