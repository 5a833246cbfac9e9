"""What every HTTP connection of a listener shares: the application, the limits, the counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import attrs
import trio
from hypercorn.config import Config
from hypercorn.protocol.events import StreamClosed
from hypercorn.trio.worker_context import WorkerContext

from nurseries.serving.asgi import Exchange, problem_app
from nurseries.serving.headers import Headers
from nurseries.serving.problem import Problem
from nurseries.serving.rates import AddressRates, rate_key

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from hypercorn.protocol.events import Event

    from nurseries.serving.asgi import ASGIApp, Tasks
    from nurseries.serving.bodies import BodyLimit, BodyLimits
    from nurseries.serving.limits import ServingLimits
    from nurseries.serving.peers import TrustedProxies


OnLimit = Callable[[Literal["rate", "connections"], str], object]
"""Told which limit somebody met, and from which address. It must neither wait nor raise."""


@attrs.frozen
class ServingStatistics:
    """What a listener does and did.

    Attributes:
        connections: open now, of every kind.
        websockets: open now.
        requests: HTTP requests being answered now.
        accepted: connections since the start.
        requests_total: HTTP requests since the start.
        websockets_total: accepted WebSockets since the start.
        refused: connections over a limit on connections.
        rate_limited: requests and handshakes over the rate of their address.
        rate_addresses: addresses whose rate is remembered now.
        crashed: handlers and connections that failed with an exception; each was logged once.
        draining: whether the listener has stopped accepting.
    """

    connections: int
    websockets: int
    requests: int
    accepted: int
    requests_total: int
    websockets_total: int
    refused: int
    rate_limited: int
    rate_addresses: int
    crashed: int
    draining: bool


class Drainable(Protocol):
    """A connection that can be asked to end when it is done."""

    def drain(self) -> None:
        """Take no new request; end when idle."""


@attrs.define(eq=False)
class Serving:
    """The state that the connections of one listener share."""

    http: ASGIApp
    limits: ServingLimits
    bodies: BodyLimits
    proxies: TrustedProxies
    rates: AddressRates
    config: Config
    context: WorkerContext
    on_limit: OnLimit
    connections: set[Drainable] = attrs.field(factory=set)
    websockets: int = 0
    requests: int = 0
    accepted: int = 0
    requests_total: int = 0
    websockets_total: int = 0
    refused: int = 0
    rate_limited: int = 0
    crashed: int = 0
    draining: bool = False

    @classmethod
    def of(
        cls,
        http: ASGIApp,
        limits: ServingLimits,
        bodies: BodyLimits,
        proxies: TrustedProxies,
        on_limit: OnLimit,
    ) -> Serving:
        """Return the state of a new listener."""
        config = Config()
        config.accesslog = None
        config.errorlog = None
        config.include_server_header = False
        rates = AddressRates(limits.requests_per_second, limits.request_burst, limits.rate_addresses)
        return cls(http, limits, bodies, proxies, rates, config, WorkerContext(None), on_limit)

    def drain(self) -> None:
        """Ask every connection to end when it is done."""
        self.draining = True
        for connection in tuple(self.connections):
            connection.drain()

    def count_crash(self) -> None:
        """Count a handler that failed."""
        self.crashed += 1

    def rate_limit(self, address: str) -> Problem | None:
        """Take one request of an address, or return the answer to one too many."""
        wait = self.rates.take(rate_key(address), trio.current_time())
        if wait == 0.0:
            return None
        self.rate_limited += 1
        self.on_limit("rate", address)
        return Problem.of(429, retry_after=wait)

    def begin(  # noqa: PLR0913  # one request, as both protocols describe it
        self,
        *,
        tasks: Tasks,
        address: str,
        items: list[tuple[bytes, bytes]],
        body: BodyLimit,
        problem: Problem | None,
        send: Callable[[Event], Awaitable[None]],
        stream_id: int,
        secure: bool,
    ) -> Exchange:
        """Return the exchange for a request that has come from `address`; its `handle` starts it.

        The application answers it, unless its address's rate or `problem` does.
        """
        self.requests += 1
        self.requests_total += 1
        client = self.proxies.client(address, Headers(items), secure=secure)
        problem = self.rate_limit(client.address) or problem
        app = self.http if problem is None else problem_app(problem)
        peer = (client.address, 0)
        parts = (app, self.config, self.context, tasks, client.secure, peer, None, send, stream_id)
        return Exchange(*parts, body_bytes=body.size, wanted=problem is None)

    async def end(self, exchange: Exchange) -> None:
        """Tell the application of an exchange that it is over. Not a checkpoint."""
        self.requests -= 1
        await exchange.handle(StreamClosed(stream_id=exchange.stream_id))
