"""HTTP/1.1: h11's sans-I/O connection with one reader, one deadline and an answer to every input.

Not derived from Hypercorn's `H11Protocol`: how it reads, sends, ends and recycles is where its holes are.
"""

from __future__ import annotations

import math
from enum import Enum, auto
from typing import TYPE_CHECKING

import h11
import trio
from hypercorn.protocol.events import Body, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.typing import ConnectionState

from nurseries.serving.asgi import Tasks, objection
from nurseries.serving.handshake import wants_websocket
from nurseries.serving.problem import Problem
from nurseries.serving.wire import Wire, WireBroken

if TYPE_CHECKING:
    from nurseries.serving.asgi import Exchange
    from nurseries.serving.connection import Serving


STREAM_ID = 1


class Phase(Enum):
    """What the connection waits for."""

    IDLE = auto()  # the first byte of a request
    HEAD = auto()  # the rest of its head
    BODY = auto()  # the rest of its body
    ANSWER = auto()  # the application


class HTTP1:
    """One HTTP/1.1 connection.

    One task reads for as long as the connection lives, so that a disconnect is seen at once: also while a
    request is answered, and also when bytes of the next one already wait. A client that closes its sending
    half is gone: on TCP it looks the same, and a handler that works for nobody must hear of it.

    Attributes:
        upgrade: the request that asked for a WebSocket, and the bytes behind it, once `run` has returned.
    """

    def __init__(self, wire: Wire, serving: Serving, address: str, nursery: trio.Nursery) -> None:
        limits = serving.limits
        self.upgrade: tuple[h11.Request, bytes] | None = None
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._tasks = Tasks(nursery, serving.count_crash)
        self._wire = wire
        self._serving = serving
        self._limits = limits
        self._address = address
        self._exchange: Exchange | None = None
        self._held = b""  # a head that goes out together with its body
        self._over = False
        self._phase = Phase.IDLE
        self._reading = trio.CancelScope()
        self._deadline = trio.current_time() + limits.head_seconds
        self._woken = False

    # -- the reader ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends or asks for a WebSocket."""
        self._serving.connections.add(self)
        try:
            await self._read()
        except WireBroken:
            pass
        finally:
            self._serving.connections.discard(self)
            if self._exchange is not None:
                await self._serving.end(self._exchange)
                self._exchange = None

    async def _read(self) -> None:
        while True:
            await self._handle_events()
            if self._over or self.upgrade is not None:
                return
            if self._phase is Phase.IDLE and self._serving.draining:
                return
            with trio.CancelScope(deadline=self._deadline) as self._reading:
                data = await self._wire.receive()
            if self._reading.cancelled_caught:
                if self._woken:
                    self._woken = False
                elif await self._late():
                    return
                continue
            self._woken = False
            if not data:
                return
            self._connection.receive_data(data)
            if self._phase is Phase.IDLE:
                self._enter(Phase.HEAD, self._limits.head_seconds)

    async def _late(self) -> bool:
        """Act on a deadline that has passed; tell whether the connection is over."""
        if trio.current_time() < self._deadline:
            return False
        self._over = True
        if self._phase is Phase.BODY and self._exchange is not None:
            await self._exchange.give_up(Problem.of(408))
        elif self._phase is Phase.HEAD:
            await self._refuse(408)
        return True

    def _enter(self, phase: Phase, seconds: float = math.inf) -> None:
        self._phase = phase
        self._deadline = trio.current_time() + seconds
        self._reading.deadline = self._deadline

    def _wake(self) -> None:
        """Let the reader look at what has changed."""
        self._woken = True
        self._reading.cancel()

    def drain(self) -> None:
        """Take no new request; end now when idle, else after the answer."""
        if self._phase is Phase.IDLE:
            self._wake()

    # -- what the peer says --------------------------------------------------------------------------

    async def _handle_events(self) -> None:  # noqa: C901  # one branch for each thing a peer can say
        connection = self._connection
        while not self._over:
            if connection.they_are_waiting_for_100_continue and self._wants_body():
                await self._write(self._encode(h11.InformationalResponse(status_code=100, headers=[])))
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
                return
            if event is h11.NEED_DATA:
                return
            if event is h11.PAUSED:
                if len(connection.trailing_data[0]) > self._limits.pipelined_bytes:
                    self._over = True
                return
            if isinstance(event, h11.Request):
                problem = self._objection(event)
                if problem is None and wants_websocket(event):
                    self.upgrade = (event, connection.trailing_data[0])
                    return
                await self._begin(event, problem)
            elif self._exchange is None:
                return
            elif isinstance(event, h11.Data):
                await self._exchange.handle(Body(stream_id=STREAM_ID, data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                self._enter(Phase.ANSWER)
                await self._exchange.handle(EndBody(stream_id=STREAM_ID))
            else:
                return

    def _wants_body(self) -> bool:
        return self._exchange is not None and self._exchange.wanted

    def _objection(self, request: h11.Request) -> Problem | None:
        if request.http_version not in {b"1.0", b"1.1"}:
            return Problem.of(505)
        body = self._serving.bodies.of(request.target)
        return objection(request.method, request.target, list(request.headers), self._limits, body)

    async def _begin(self, request: h11.Request, problem: Problem | None) -> None:
        """Start answering a request whose head is complete."""
        items = list(request.headers)
        body = self._serving.bodies.of(request.target)
        self._enter(Phase.BODY, body.seconds)
        self._exchange = self._serving.begin(
            tasks=self._tasks,
            address=self._address,
            items=items,
            body=body,
            problem=problem,
            send=self._stream_send,
            stream_id=STREAM_ID,
            secure=self._wire.secure,
        )
        await self._exchange.handle(
            Request(
                stream_id=STREAM_ID,
                headers=items,
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=ConnectionState({}),
            )
        )

    async def _refuse(self, status: int) -> None:
        """Answer what is no request; when a request is being answered already, cut it."""
        self._over = True
        if self._connection.our_state is h11.IDLE or (
            self._connection.our_state is h11.SEND_RESPONSE and self._exchange is None
        ):
            await self._wire.send(Problem.of(status).response())
        elif self._exchange is not None:
            await self._exchange.give_up(Problem.of(status))

    # -- what the application says -------------------------------------------------------------------

    async def _stream_send(self, event: StreamEvent) -> None:
        """Send a part of the response; a head whose body is at hand goes out with it, in one write."""
        if isinstance(event, Response):
            headers = [*event.headers, *self._serving.config.response_headers("h11")]
            if self._serving.draining or self._over or self._connection.their_state is h11.SEND_BODY:
                headers.append((b"connection", b"close"))
            data = self._encode(h11.Response(headers=headers, status_code=event.status_code))
            if any(name == b"content-length" for name, _ in event.headers):
                self._held = data
            else:
                await self._write(data)
        elif isinstance(event, Body):
            await self._write(self._encode(h11.Data(data=event.data)))
        elif isinstance(event, EndBody):
            await self._write(self._encode(h11.EndOfMessage()))
        elif isinstance(event, StreamClosed):
            await self._maybe_recycle()

    def _encode(self, event: h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage) -> bytes:
        return self._connection.send(event) or b""

    async def _write(self, data: bytes) -> None:
        data, self._held = self._held + data, b""
        if not data:
            return
        try:
            await self._wire.send(data)
        except WireBroken:
            self._over = True
            self._wake()
            if self._exchange is not None:
                await self._exchange.handle(StreamClosed(stream_id=STREAM_ID))

    async def _maybe_recycle(self) -> None:
        """End the exchange, and go on with the next request if the connection can carry one.

        There is no checkpoint between the end of the exchange and the new deadline: the application's task,
        which runs this, may be cancelled at the first one.
        """
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        await self._serving.end(exchange)
        connection = self._connection
        if (
            connection.our_state is h11.DONE
            and connection.their_state is h11.DONE
            and not self._serving.draining
            and not self._over
        ):
            connection.start_next_cycle()
            self._enter(Phase.IDLE, self._limits.keep_alive_seconds)
            if connection.trailing_data[0]:
                self._enter(Phase.HEAD, self._limits.head_seconds)
                self._wake()
        else:
            self._over = True
            self._wake()
