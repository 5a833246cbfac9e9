"""Server-sent events (WHATWG HTML, 9.2): `id:` is the number, `event:` the type, `data:` the envelope."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from quart import Response, request

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from nurseries.events import Event

KEEP_ALIVE: Final = b": all quiet\n\n"


def wants_event_stream() -> bool:
    """Say whether the current request asks for a stream of events rather than for a document."""
    return "text/event-stream" in request.headers.get("Accept", "")


def event_stream(pages: AsyncGenerator[Sequence[Event], None]) -> Response:
    """Return the response that streams pages of events; an empty page becomes a comment that keeps it alive."""

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(pages):
            async for page in pages:
                yield b"".join(map(_encode, page)) or KEEP_ALIVE

    # HEAD asks for no body, and an answer without one must not wait for the end of the stream.
    response = Response(b"" if request.method == "HEAD" else body(), content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    response.timeout = None  # a stream lasts as long as somebody reads it
    return response


def _encode(event: Event) -> bytes:
    # The envelope is JSON on one line, so it needs no splitting into several data fields.
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), event.data)
