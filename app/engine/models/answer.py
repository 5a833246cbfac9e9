"""From the bytes of a response to the pieces of an answer, whichever provider sends them."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import msgspec

from app.engine.model import ToolCall
from app.engine.models.errors import ModelFailure
from app.engine.models.http import EventStream, failures_told
from app.engine.models.text import TextJoiner

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    import httpx2

    from app.engine.model import Piece
    from app.engine.models.provider import Progress
    from app.engine.models.sse import Event

MAX_CALLS: Final = 256
MAX_ARGUMENTS: Final = 512 * 1024
"""Characters of the arguments of all calls of one answer."""

MAX_OPAQUE: Final = 256 * 1024
"""Characters of thinking that are kept to be sent back; of a longer one nothing is."""

CUT_OFF: Final = "\n\n[Cut off: the model has reached the limit of what it may write at once.]"
FILTERED: Final = "\n\n[Stopped by the filter of the model's provider.]"


class Parser(Protocol):
    """Understands the events of one answer."""

    complete: bool
    """Whether all of the answer has come."""

    done: bool
    """Whether nothing that counts can follow."""

    def feed(self, event: Event) -> Iterator[Piece | Progress]:
        """Yield what an event brings.

        Raises:
            ModelFailure: it tells of an error, or cannot be understood.
        """
        ...

    def end(self) -> Iterator[Piece]:
        """Yield what is known only now that all events have come, if `complete`."""
        ...


class RawResponse(Protocol):
    """What both SDKs give for a response whose body is still to come."""

    @property
    def http_response(self) -> httpx2.Response:
        """The response."""
        ...


@asynccontextmanager
async def streamed(
    ask: Callable[[], AbstractAsyncContextManager[RawResponse]], parser: Parser
) -> AsyncIterator[AsyncIterator[Piece | Progress]]:
    """Send the request that `ask` makes, and iterate over the answer in the block.

    Raises:
        ModelFailure: on entering, or at any piece; also where the stream ends before the answer does.
    """
    async with AsyncExitStack() as stack:
        with failures_told():  # here alone: what the caller's block raises is not the model's failure
            response = await stack.enter_async_context(ask())
        events = await stack.enter_async_context(EventStream(response.http_response))
        yield await stack.enter_async_context(aclosing(_pieces(events, parser)))


async def _pieces(events: EventStream, parser: Parser) -> AsyncGenerator[Piece | Progress, None]:
    async for event in events:
        for piece in parser.feed(event):
            yield piece
        if parser.done:
            events.complete = True
            break  # some servers leave the stream open
    if not parser.complete:
        raise ModelFailure("broke off")
    for piece in parser.end():
        yield piece


def read_json(data: bytes | str) -> Any:
    """Return a JSON value.

    Python's own decoder, since it lets lone surrogates pass, for `TextJoiner`.

    Raises:
        ModelFailure: it is not JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ModelFailure("sent what is not JSON") from None


@attrs.define
class CallBuilder:
    """A tool call that comes in parts."""

    call_id: str = ""
    tool: str = ""
    opaque: Any = None
    _parts: list[str] = attrs.field(factory=list)
    _joiner: TextJoiner = attrs.field(factory=TextJoiner)

    def add(self, part: str) -> None:
        """Add a part of the arguments' JSON text."""
        self._parts.append(self._joiner.join(part))

    def build(self, opaque: str = "") -> ToolCall:
        """Return the call; arguments that are not JSON stay text, which the dispatcher refuses by name."""
        text = "".join(self._parts)
        try:
            arguments = msgspec.json.decode(text) if text.strip() else {}
        except (msgspec.MsgspecError, RecursionError):
            arguments = text
        return ToolCall(self.call_id, self.tool, arguments, opaque)


class Calls:
    """The tool calls of one answer, in the order in which they began, with a bound on all of them."""

    def __init__(self) -> None:
        self._calls: list[CallBuilder] = []
        self._size = 0

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[CallBuilder]:
        return iter(self._calls)

    def begin(self, call_id: str, tool: str) -> CallBuilder:
        """Begin a call."""
        if len(self._calls) == MAX_CALLS:
            raise ModelFailure("asks for too many tools at once")
        self._calls.append(CallBuilder(call_id, tool))
        return self._calls[-1]

    def extend(self, call: CallBuilder, part: str) -> None:
        """Add a part of a call's arguments."""
        self._size += len(part)
        if self._size > MAX_ARGUMENTS:
            raise ModelFailure("sent arguments that are too long")
        call.add(part)


class Kept:
    """Thinking that its model may want to see again: all of it or, if it is too long, nothing."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    def add(self, text: str) -> None:
        """Keep some more, within the bound."""
        self._size += len(text)
        if self._size > MAX_OPAQUE:
            self._parts.clear()
        else:
            self._parts.append(text)

    def __str__(self) -> str:
        return "".join(self._parts)


def seal(owner: str, value: object) -> str:
    """Return `ToolCall.opaque` for a value that only the model `owner` may see again."""
    return msgspec.json.encode({"model": owner, "value": value}).decode()


def unseal(owner: str, opaque: str) -> Any:
    """Return the value that `owner` sealed; None for another's, and for none."""
    if not opaque:
        return None
    try:
        sealed = msgspec.json.decode(opaque)
    except msgspec.MsgspecError:
        return None
    return sealed.get("value") if isinstance(sealed, dict) and sealed.get("model") == owner else None
