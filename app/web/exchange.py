"""The nursery of one HTTP exchange: what it owns ends with it, answered or not.

Quart cancels a handler whose client has left, at whatever step it is in. A run that is to end with its client
is therefore a child of the exchange, as on a socket it is a child of the session: there is no step at which
it has no owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio
from quart import request
from quart_trio import QuartTrio

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable

_NURSERY: Final = "nurseries.exchange"


class Application(QuartTrio):
    """Quart, with a nursery around each exchange."""

    async def asgi_app(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one exchange; return when all that it owned has ended."""
        async with trio.open_nursery() as nursery:
            scope[_NURSERY] = nursery
            await super().asgi_app(scope, receive, send)
            nursery.cancel_scope.cancel()


def exchange_nursery() -> trio.Nursery:
    """Return the nursery that ends with the current HTTP exchange."""
    nursery = request.scope[_NURSERY]  # type: ignore[typeddict-item]  # ASGI lets servers add keys with a dot
    assert isinstance(nursery, trio.Nursery)
    return nursery
