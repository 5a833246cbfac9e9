"""Server-sent events (WHATWG HTML, 9.2): `id:` is the number, `event:` the type, `data:` the envelope."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from quart import Response, request

from app.wire.codec import encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from app.wire.messages import Subscribed
    from nurseries.events import Event

KEEP_ALIVE: Final = b": all quiet\n\n"


def wants_event_stream() -> bool:
    """Say whether the current request asks for a stream of events rather than for a document."""
    return "text/event-stream" in request.headers.get("Accept", "").lower()


def event_stream(pages: AsyncGenerator[Sequence[Event], None], beginning: bytes = b"") -> Response:
    """Return the response that streams pages of events; an empty page becomes a comment that keeps it alive.

    Args:
        pages: the events.
        beginning: what is streamed before them, like a `reset_cursor`.
    """

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(pages):
            if beginning:
                yield beginning
            async for page in pages:
                yield b"".join(map(_encode, page)) or KEEP_ALIVE

    # HEAD asks for no body, and an answer without one must not wait for the end of the stream.
    response = Response(b"" if request.method == "HEAD" else body(), content_type="text/event-stream")
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    response.timeout = None  # a stream lasts as long as somebody reads it
    return response


def reset_cursor(frame: Subscribed) -> bytes:
    """Return the event for a client whose cursor cannot be honoured. Its `id:` is the cursor to go on with."""
    return b"id: %d\nevent: subscribed\ndata: %s\n\n" % (frame.last_seq, encode_frame(frame))


def _encode(event: Event) -> bytes:
    # The envelope is JSON on one line, so it needs no splitting into several data fields.
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), event.data)
