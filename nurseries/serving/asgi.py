"""One HTTP request as an ASGI application sees it, with a crash barrier around the application."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.protocol.events import Body, EndBody, Event, Response, StreamClosed
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream

from nurseries.serving.problem import CONTENT_TYPE, Problem

if TYPE_CHECKING:
    from hypercorn.config import Config

    from nurseries.serving.bodies import BodyLimit
    from nurseries.serving.limits import ServingLimits

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ASGIApp = Callable[[Any, Receive, Send], Awaitable[None]]

logger = logging.getLogger("nurseries.serving")


class ClientDisconnected(OSError):
    """Raised by an ASGI `send` once nobody is there to read it (ASGI specification, HTTP, 2.4)."""


def contained(error: BaseException, *expected: type[BaseException]) -> BaseException | None:
    """Return what is left of an error to be logged, once Cancelled and what was expected are taken away.

    Raises:
        KeyboardInterrupt: it was among the errors; the process is to end, and no barrier holds that up.
    """
    group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
    quiet: tuple[type[BaseException], ...] = (trio.Cancelled, *expected)
    if group.subgroup(KeyboardInterrupt) is not None:
        raise KeyboardInterrupt from error
    if group.subgroup(quiet) is None:
        return error
    return group.split(quiet)[1]


@contextmanager
def barrier(
    what: str, peer: str, crashed: Callable[[], None], *expected: type[BaseException]
) -> Iterator[None]:
    """Keep a failure inside: log it once, call `crashed`, go on behind the block.

    Nothing passes but a cancellation and a KeyboardInterrupt: a handler that raises SystemExit has failed
    like any other. Errors of the classes `expected` are the peer's leaving and are not worth a line.
    """
    try:
        yield
    except trio.Cancelled:
        raise
    except BaseException as error:  # a barrier is for what nobody foresaw
        rest = contained(error, *expected)
        if rest is not None:
            crashed()
            logger.error("%s of %s failed: %r", what, peer, rest, exc_info=rest)  # noqa: TRY400  # without Cancelled


class Tasks:
    """Runs applications in a connection's nursery; what Hypercorn's streams know as a task group.

    Hypercorn's own closes the process on some errors, loses others beside Cancelled, and stops reading the
    connection while an application does not read its body. Here an application's crash is logged once and
    stays with its request, and putting a message never waits: the body limit bounds what is put.
    """

    def __init__(self, nursery: trio.Nursery, crashed: Callable[[], None]) -> None:
        self._nursery = nursery
        self._crashed = crashed

    async def spawn_app(
        self, app: ASGIApp, _config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Start an application and return what puts a message into its `receive`.

        It is offered no extension: those that Hypercorn knows are not sent from here.
        """
        scope["extensions"] = {}
        inbox = Inbox()
        self._nursery.start_soon(self._run, app, scope, inbox, send)
        return inbox.put

    async def _run(self, app: ASGIApp, scope: Any, inbox: Inbox, send: Send) -> None:
        try:
            what, peer = f"{scope['method']} {scope['path']!r}", scope["client"][0]
            with barrier(what, peer, self._crashed, ClientDisconnected):
                await app(scope, inbox.receive, send)
        finally:
            await send(None)


class Inbox:
    """What waits for an application: as much of the body as has come, and a disconnect, which is told for ever.

    Pieces of a body are joined while they wait. Many small ones, each a message of its own, would take some
    hundred times the memory that the limit on bodies allows for.
    """

    __slots__ = ("_body", "_gone", "_more", "_news", "_waiting")

    def __init__(self) -> None:
        self._body = bytearray()
        self._more = True
        self._news = False  # whether there is a piece, or the end, that was not told yet
        self._gone = False
        self._waiting: trio.Event | None = None

    async def put(self, message: Any) -> None:
        """Add a message. Never waits; asynchronous because that is how Hypercorn calls it."""
        if message["type"] == "http.disconnect":
            self._gone = True
            self._body.clear()
        else:
            self._news = True
            self._body += message["body"]
            self._more = message["more_body"]
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None

    async def receive(self) -> Any:
        """Return the next message."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while not (self._news or self._gone):
            if self._waiting is None:
                self._waiting = trio.Event()
            await self._waiting.wait()
        if self._gone:
            await trio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}
        message = {"type": "http.request", "body": bytes(self._body), "more_body": self._more}
        self._body.clear()
        self._news = False
        return message


class Exchange(HTTPStream):
    """A request and its response: Hypercorn's ASGI state machine, with bounds and an early end.

    Attributes:
        wanted: whether the request is answered by the application, so that its body is worth sending.
    """

    def __init__(self, *args: Any, body_bytes: int, wanted: bool) -> None:
        super().__init__(*args)
        self.app_put: Any = None
        self.wanted = wanted
        self._body_room = body_bytes
        self._given_up = False

    @property
    def answered(self) -> bool:
        """Whether the response is complete."""
        return self.state is ASGIHTTPState.CLOSED

    async def handle(self, event: Event) -> None:
        """Take an event of the protocol; a body that grows over its limit is answered 413."""
        if isinstance(event, Body) and not self.closed:
            self._body_room -= len(event.data)
            if self._body_room < 0:
                await self.give_up(Problem.of(413))
                return
        await super().handle(event)

    async def give_up(self, problem: Problem) -> None:
        """End the exchange from this side: with the problem if nothing was answered yet, else by cutting it."""
        if self.closed or self._given_up:
            return
        self._given_up = True
        if self.state is ASGIHTTPState.REQUEST:
            await self._send_problem(problem)
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def app_send(self, message: Any) -> None:
        """Take a message of the application.

        Raises:
            ClientDisconnected: nobody is there to read it. A checkpoint, so that a loop over it ends or yields.
        """
        if self._given_up or (self.closed and not self.answered):
            if message is None:  # the application has ended
                return
            await trio.lowlevel.checkpoint()
            raise ClientDisconnected("nobody reads this any more")
        await super().app_send(message)

    async def _send_error_response(self, status_code: int) -> None:
        await self._send_problem(Problem.of(status_code))

    async def _send_problem(self, problem: Problem) -> None:
        body = problem.body
        headers = [
            (b"content-type", CONTENT_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            *problem.headers,
        ]
        self.state = ASGIHTTPState.CLOSED
        await self.send(Response(stream_id=self.stream_id, headers=headers, status_code=problem.status))
        if self.scope["method"] != "HEAD":
            await self.send(Body(stream_id=self.stream_id, data=body))
        await self.send(EndBody(stream_id=self.stream_id))


def problem_app(problem: Problem) -> ASGIApp:
    """Return an ASGI application that answers every request with a problem."""

    async def app(_scope: Any, _receive: Receive, send: Send) -> None:
        body = problem.body
        headers = [
            (b"content-type", CONTENT_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            *problem.headers,
        ]
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def objection(
    method: bytes, target: bytes, items: list[tuple[bytes, bytes]], limits: ServingLimits, body: BodyLimit
) -> Problem | None:
    """Return why a well-formed request is not given to the application, if it is not."""
    size = len(target) + sum(len(name) + len(value) + 4 for name, value in items)
    if size > limits.head_bytes or len(items) > limits.head_fields:
        return Problem.of(431)
    names = {name for name, _ in items}
    if b"transfer-encoding" in names and b"content-length" in names:
        return Problem.of(400)  # one of the two lies about where the next request begins (RFC 9112, 6.1)
    if method == b"CONNECT":
        return Problem.of(501)
    if not target.isascii() or not (target.startswith((b"/", b"http://", b"https://")) or target == b"*"):
        return Problem.of(400)
    for name, value in items:
        if name == b"content-length" and int(value) > body.size:
            return Problem.of(413)
    return None
