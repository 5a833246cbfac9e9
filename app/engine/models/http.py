"""The HTTP under the SDKs: one client for each configured model, which holds connections and nothing of a user."""

from __future__ import annotations

import math
import ssl
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final

import httpcore2
import httpx2
import msgspec
import trio

from app.engine.models.errors import ModelFailure, TimedOut
from app.engine.models.sse import EventDecoder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from app.engine.models.sse import Event

CONNECT_SECONDS: Final = 10.0
MAX_CONNECTIONS: Final = 4096
"""More than the runs that run at once by default: runs are bounded elsewhere, this bounds what they multiply."""

IDLE_CONNECTIONS: Final = 100
IDLE_SECONDS: Final = 20.0
REUSE_SECONDS: Final = 0.1
"""How long an answer that is complete may take to end, for its connection to be used again."""

MAX_ERROR: Final = 16 * 1024
"""Bytes that are read of an error's body."""

MAX_RETRY_AFTER: Final = 300.0
"""Seconds; a provider that wants more is asked again then."""

SHARED: Final = (
    httpx2.AsyncClient,
    httpx2.AsyncHTTPTransport,
    httpcore2.AsyncConnectionPool,
    httpcore2.AsyncNetworkBackend,  # opens connections
)
"""What the users of a model share: connections, each lent to one request at a time and closed unless that has ended."""

_TRANSPORT: Final = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, ssl.SSLError)


def make_http_client() -> httpx2.AsyncClient:
    """Return a client whose retries, redirects and cookies are off.

    A client keeps cookies by default, and would send those that one user's answer brought with another user's
    request. A redirect could carry the key elsewhere. What is compressed could grow without bound.
    """
    return httpx2.AsyncClient(
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        headers={"Accept-Encoding": "identity"},
        http2=False,
        follow_redirects=False,
        limits=httpx2.Limits(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
        ),
        timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),  # the cascade has the other limits
        event_hooks={"request": [_close_when_cancelled], "response": [_refuse_failures]},
    )


@contextmanager
def failures_told() -> Iterator[None]:
    """Turn what HTTP and the SDKs raise in the block into `ModelFailure`. What they quote does not get out."""
    try:
        yield
    except ModelFailure:
        raise
    except Exception as error:
        failure = _failure_in(error)
        if failure is None:
            raise
        raise failure from None


def _failure_in(error: BaseException | None) -> ModelFailure | None:
    """Look for the failure in an error and in its causes, since an SDK puts its own around it."""
    while error is not None:
        if isinstance(error, ModelFailure):
            return error
        if isinstance(error, httpx2.TimeoutException):
            return TimedOut("cannot be reached in time")
        if isinstance(error, (httpx2.ConnectError, httpx2.ProxyError)):
            return ModelFailure("cannot be reached")
        if isinstance(error, _TRANSPORT):
            return ModelFailure("lost the connection")
        error = error.__cause__
    return None


class EventStream:
    """The events of one response, as an asynchronous context manager that iterates over them.

    Attributes:
        complete: set by who reads when the last event that counts has come.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._decoder = EventDecoder()
        self._chunks: AsyncIterator[bytes] = response.aiter_raw()
        self._events: Iterator[Event] = iter(())
        self.complete = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await _read_to_the_end(self._chunks, REUSE_SECONDS if self.complete else 0)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        with failures_told():
            while True:
                for event in self._events:
                    return event
                self._events = self._decoder.feed(await anext(self._chunks))


async def _read_to_the_end(chunks: AsyncIterator[bytes], seconds: float) -> None:
    """Leave a body. A read that is cancelled ends every generator on the way, and closes the connection.

    `aclose()` does not: some of the HTTP library's generators leave those within them to the garbage collector.
    """
    with trio.move_on_after(seconds):
        try:
            async for _ in chunks:
                pass
        except _TRANSPORT:
            return


async def _close_when_cancelled(request: httpx2.Request) -> None:
    """Have the connection closed if its TLS handshake is cancelled: it is left to the garbage collector otherwise.

    See https://www.encode.io/httpcore/extensions/#trace for the events.
    """
    stream: Any = None

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal stream
        if event.endswith("connect_tcp.complete"):
            stream = info["return_value"]
        elif event.endswith("start_tls.failed"):
            await stream.aclose()

    request.extensions["trace"] = trace


async def _refuse_failures(response: httpx2.Response) -> None:
    """Raise for every status but success, having read a bounded part of the body."""
    if response.is_success:
        return
    body = b""
    chunks = response.aiter_raw()
    try:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_ERROR:
                break
    finally:
        await _read_to_the_end(chunks, 0)
    raise failure_of(response.status_code, response.headers, body)


class _Error(msgspec.Struct):
    """An error as OpenAI, Anthropic and those who are compatible with them write it."""

    message: Any = None
    type: Any = None
    code: Any = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None


def failure_of(status: int | None, headers: httpx2.Headers, body: bytes) -> ModelFailure:
    """Return the failure that an error response stands for."""
    try:
        error = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        error = None
    if not isinstance(error, _Error):
        error = _Error(message=error)
    kind = error.code if isinstance(error.code, str) else error.type
    return ModelFailure(
        status=status,
        retry_after=retry_after(headers),
        kind=kind if isinstance(kind, str) else "",
        detail=str(error.message or ""),
    )


def retry_after(headers: httpx2.Headers) -> float | None:
    """Return the seconds that `Retry-After` (RFC 9110, section 10.2.3) or OpenAI's `retry-after-ms` tell."""
    seconds = _number(headers.get("retry-after-ms")) / 1000
    text = headers.get("retry-after")
    if math.isnan(seconds):
        seconds = _number(text)
    if math.isnan(seconds) and text is not None:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
