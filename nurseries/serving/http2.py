"""HTTP/2, over TLS only: concurrent requests on one connection, each with its bounds, and an answer to every input.

Written anew on h2, not derived from Hypercorn's `H2Protocol`: its buffers, its sending task, its priority
tree and most of its event handlers are where its holes are, so nothing would be left of it. Here a stream
has no buffer: the application's own task sends its DATA, and waits while the peer's window is closed.
PRIORITY is ignored, as RFC 9113 (5.3.2) allows, and nothing is ever pushed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import h2.events
import h2.exceptions
import h11
import trio
from h2.errors import ErrorCodes
from hypercorn.protocol.events import Body, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.typing import ConnectionState
from hypercorn.utils import filter_pseudo_headers, suppress_body

from nurseries.serving.asgi import Exchange, Tasks, objection
from nurseries.serving.http2_frames import GONE, Frames
from nurseries.serving.problem import Problem
from nurseries.serving.wire import Wire, WireBroken

if TYPE_CHECKING:
    from nurseries.serving.bodies import BodyLimit
    from nurseries.serving.connection import Serving

_BODIES_AT_ONCE = 4  # full request bodies that one connection may have on the way at the same time


@attrs.define(eq=False)
class _Stream:
    exchange: Exchange
    limit: BodyLimit
    body_until: float  # when the request's body must be complete; inf once it is
    body_bytes: int = 0
    promised: int | None = None  # bytes of the answer still to come, if its head has told

    @property
    def receiving(self) -> bool:
        return self.body_until < math.inf

    def answer(self, size: int) -> None:
        """Count what is sent of the answer against what its head has promised."""
        if self.promised is not None:
            self.promised -= size
            if self.promised < 0:
                raise h11.LocalProtocolError("more body than its Content-Length")


class HTTP2:
    """One HTTP/2 connection.

    Attributes:
        upgrade: always None; there is no upgrade from HTTP/2, and WebSockets over it are not offered.
    """

    upgrade = None

    def __init__(self, wire: Wire, serving: Serving, address: str, nursery: trio.Nursery) -> None:
        self._wire = wire
        self._serving = serving
        self._limits = serving.limits
        self._address = address
        self._tasks = Tasks(nursery, serving.count_crash)
        self._streams: dict[int, _Stream] = {}
        self._reading = trio.CancelScope()
        self._idle_until = trio.current_time() + self._limits.head_seconds
        self._over = False
        self._frames = Frames(wire, self._limits)

    # -- the reader ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends."""
        self._serving.connections.add(self)
        try:
            await self._frames.greet()
            await self._read()
        except WireBroken:
            pass
        finally:
            self._serving.connections.discard(self)
            for stream_id in tuple(self._streams):
                await self._drop(stream_id)

    async def _read(self) -> None:
        while not self._over:
            if self._serving.draining and not self._streams:
                await self._go_away(ErrorCodes.NO_ERROR)
                return
            with trio.CancelScope(deadline=self._deadline()) as self._reading:
                data = await self._wire.receive()
            if self._reading.cancelled_caught:
                await self._late()
                continue
            if not data:
                return
            try:
                events = self._frames.take(data)
            except h2.exceptions.ProtocolError:
                await self._frames.flush()  # h2 has said GOAWAY
                return
            for event in events:
                await self._handle(event)
            await self._frames.flush()

    def _deadline(self) -> float:
        if not self._streams:
            return self._idle_until
        return min(stream.body_until for stream in self._streams.values())

    async def _late(self) -> None:
        """Act on the deadlines that have passed."""
        now = trio.current_time()
        if not self._streams:
            if now >= self._idle_until:
                await self._go_away(ErrorCodes.NO_ERROR)
            return
        for stream in tuple(self._streams.values()):
            if now >= stream.body_until:
                stream.body_until = math.inf
                await stream.exchange.give_up(Problem.of(408))

    def drain(self) -> None:
        """Take no new request; end when the last answer is given."""
        self._reading.cancel()

    # -- what the peer says --------------------------------------------------------------------------

    async def _handle(self, event: h2.events.Event) -> None:
        if self._over:
            return
        match event:
            case h2.events.RequestReceived(stream_id=int(stream_id)):
                await self._begin(stream_id, list(event.headers or ()))
            case h2.events.DataReceived(stream_id=int(stream_id)):
                await self._take(stream_id, event.data or b"", event.flow_controlled_length or 0)
            case h2.events.StreamEnded(stream_id=int(stream_id)):
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.body_until = math.inf
                    await stream.exchange.handle(EndBody(stream_id=stream_id))
            case h2.events.WindowUpdated():
                if self._frames.count_update():
                    await self._go_away(ErrorCodes.ENHANCE_YOUR_CALM)
            case h2.events.ConnectionTerminated():
                self._over = True
            case _:
                if isinstance(event, h2.events.StreamReset) and event.stream_id is not None:
                    await self._drop(event.stream_id)
                self._frames.open_window()
                await self._count()

    async def _begin(self, stream_id: int, headers: list[tuple[bytes, bytes]]) -> None:
        if self._serving.draining:
            self._frames.reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        pseudo = {name: value for name, value in headers if name.startswith(b":")}
        items = filter_pseudo_headers(headers)
        method, target = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
        body = self._serving.bodies.of(target)
        problem = objection(method, target, items, self._limits, body)
        exchange = self._serving.begin(
            tasks=self._tasks,
            address=self._address,
            items=items,
            body=body,
            problem=problem,
            send=self._stream_send,
            stream_id=stream_id,
            secure=self._wire.secure,
        )
        self._streams[stream_id] = _Stream(exchange, body, trio.current_time() + body.seconds)
        await exchange.handle(
            Request(
                stream_id=stream_id,
                headers=items,
                http_version="2",
                method=method.decode("latin-1").upper(),
                raw_path=target if target.isascii() else b"/",
                state=ConnectionState({}),
            )
        )

    async def _take(self, stream_id: int, data: bytes, flow_controlled: int) -> None:
        """Take a piece of a body, and let the peer send as much again."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.body_bytes += len(data)
            on_the_way = sum(other.body_bytes for other in self._streams.values() if other.receiving)
            if on_the_way > _BODIES_AT_ONCE * stream.limit.size:
                await stream.exchange.give_up(Problem.of(413))
            else:
                await stream.exchange.handle(Body(stream_id=stream_id, data=data))
        if not data:
            await self._count()
        if not self._over:
            self._frames.acknowledge(stream_id, flow_controlled)

    async def _count(self) -> None:
        if self._frames.count():
            await self._go_away(ErrorCodes.ENHANCE_YOUR_CALM)

    # -- what the application says -------------------------------------------------------------------

    async def _stream_send(self, event: StreamEvent) -> None:
        """Send a part of a response. A stream that has ended meanwhile is dropped; nothing is raised."""
        stream_id = event.stream_id
        try:
            if isinstance(event, StreamClosed):
                self._close(stream_id)
                await self._drop(stream_id)
                await self._frames.flush()
            elif stream_id in self._streams:
                await self._send_part(self._streams[stream_id], event)
        except GONE:
            await self._drop(stream_id)
        except WireBroken:
            self._over = True
            self._reading.cancel()
            await self._drop(stream_id)

    async def _send_part(self, stream: _Stream, event: StreamEvent) -> None:
        """Send what is a part of a valid response.

        Raises:
            LocalProtocolError: it is not; the application has failed, as it would have on HTTP/1.1.
        """
        stream_id = event.stream_id
        if isinstance(event, Response):
            head = h11.Response(headers=event.headers, status_code=event.status_code)
            lengths = [int(value) for name, value in head.headers if name == b"content-length"]
            if lengths and not suppress_body(stream.exchange.scope["method"], event.status_code):
                stream.promised = lengths[0]
            headers = [*event.headers, *self._serving.config.response_headers("h2")]
            self._frames.headers(stream_id, event.status_code, headers)
            if not lengths:
                await self._frames.flush()  # else it goes out together with its body
        elif isinstance(event, Body):
            stream.answer(len(event.data))
            await self._send_data(stream_id, event.data)
        elif isinstance(event, EndBody):
            if stream.promised:
                raise h11.LocalProtocolError("less body than its Content-Length")
            await self._frames.end(stream_id)

    async def _send_data(self, stream_id: int, data: bytes) -> None:
        start = 0
        while start < len(data) and stream_id in self._streams:
            room = self._frames.room(stream_id)
            if room > 0:
                await self._frames.data(stream_id, data[start : start + room])
                start += room
            elif not await self._frames.wait_room():
                self._frames.reset(stream_id, ErrorCodes.CANCEL)
                await self._frames.flush()
                await self._drop(stream_id)

    def _close(self, stream_id: int) -> None:
        """Say that a stream is over: cut short if the answer is not complete, else if the request is not."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not stream.exchange.answered:
            self._frames.reset(stream_id, ErrorCodes.INTERNAL_ERROR)
        elif stream.receiving:
            self._frames.reset(stream_id, ErrorCodes.NO_ERROR)

    async def _drop(self, stream_id: int) -> None:
        """Forget a stream, and tell its application. Not a checkpoint."""
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        await self._serving.end(stream.exchange)
        if not self._streams:
            self._idle_until = trio.current_time() + self._limits.keep_alive_seconds
            self._reading.cancel()  # the reader has a new deadline, and may have something to flush
        self._frames.open_window()

    async def _go_away(self, code: ErrorCodes) -> None:
        self._over = True
        await self._frames.go_away(code)
