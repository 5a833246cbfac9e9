"""Anthropic's messages."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import anthropic
import msgspec

from app.engine.model import TextPiece, ThinkingPiece, Usage
from app.engine.models.answer import CUT_OFF, FILTERED, Calls, Kept, read_json, seal, streamed
from app.engine.models.anthropic_request import request_of
from app.engine.models.errors import ModelFailure
from app.engine.models.http import CONNECT_SECONDS, SHARED, make_http_client
from app.engine.models.provider import Progress
from app.engine.models.text import TextJoiner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from app.engine.model import Conversation, Piece
    from app.engine.models.answer import CallBuilder
    from app.engine.models.settings import ModelSettings
    from app.engine.models.sse import Event

BASE_URL: Final = "https://api.anthropic.com"
_NOTES: Final = MappingProxyType(
    {"max_tokens": CUT_OFF, "model_context_window_exceeded": CUT_OFF, "refusal": FILTERED}
)
_STATUS: Final = MappingProxyType(
    {
        "invalid_request_error": 400,
        "authentication_error": 401,
        "permission_error": 403,
        "not_found_error": 404,
        "request_too_large": 413,
        "rate_limit_error": 429,
        "api_error": 500,
        "overloaded_error": 529,
    }
)


class AnthropicModel:
    """One model behind the official SDK, which builds the requests; the answers are read here, piece by piece."""

    def __init__(self, settings: ModelSettings, api_key: str) -> None:
        self._settings = settings
        self._client = anthropic.AsyncAnthropic(
            api_key=api_key,
            base_url=settings.base_url or BASE_URL,
            max_retries=0,  # the cascade decides
            timeout=anthropic.Timeout(None, connect=CONNECT_SECONDS),
            http_client=make_http_client(),
            open_telemetry=False,  # whether and what is traced is not its to decide
        )

    def stream(
        self, conversation: Conversation
    ) -> AbstractAsyncContextManager[AsyncIterator[Piece | Progress]]:
        """Open the answer to the last turn."""
        body = request_of(conversation, self._settings)
        create: Callable[..., Any] = self._client.messages.with_streaming_response.create
        return streamed(lambda: create(**body), MessageParser(self._settings.name))

    def shared(self) -> tuple[type, ...]:
        """Return the types of what its users share by design."""
        messages = type(self._client.messages)
        sdk = (anthropic.AsyncAnthropic, messages, anthropic.NotGiven, anthropic.Omit)
        return (AnthropicModel, *sdk, *SHARED)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Block(msgspec.Struct):
    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""
    data: str = ""
    thinking: str = ""


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Error(msgspec.Struct):
    type: str = ""
    message: str = ""


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: _Error | None = None


class _Thinking:
    """A block of thinking, as it must be sent back: to the letter, with its signature."""

    def __init__(self, block: _Block) -> None:
        self.data = block.data
        self.text = Kept()
        self.signature = ""

    def block(self) -> dict[str, str] | None:
        if self.data:
            return {"type": "redacted_thinking", "data": self.data}
        if not self.signature or not str(self.text):
            return None
        return {"type": "thinking", "thinking": str(self.text), "signature": self.signature}


class MessageParser:
    """Understands the events of one message."""

    def __init__(self, owner: str) -> None:
        self.complete = self.done = False
        self._owner = owner
        self._stop: str | None = None
        self._usage = _Usage()
        self._text, self._thinking = TextJoiner(), TextJoiner()
        self._thoughts: dict[int, _Thinking] = {}
        self._calls = Calls()
        self._by_index: dict[int, CallBuilder] = {}

    def feed(self, event: Event) -> Iterator[Piece | Progress]:
        """Yield what an event brings."""
        try:
            told = msgspec.convert(read_json(event.data), _Event)
        except msgspec.ValidationError:
            raise ModelFailure("sent what is no event of a message") from None
        match told.type or event.type:
            case "error":
                error = told.error or _Error()
                raise ModelFailure(status=_STATUS.get(error.type, 500), kind=error.type, detail=error.message)
            case "message_start":
                self._count(told.message.usage if told.message else None)
            case "content_block_start" if told.content_block is not None:
                yield from self._begin(told.index, told.content_block)
            case "content_block_delta" if told.delta is not None:
                yield from self._delta(told.index, told.delta)
            case "message_delta":
                self._count(told.usage)
                self._stop = (told.delta.stop_reason if told.delta else None) or self._stop
            case "message_stop":
                self.complete = self.done = True

    def end(self) -> Iterator[Piece]:
        """Yield the calls, which are whole now, and the usage."""
        if note := _NOTES.get(self._stop or ""):
            yield TextPiece(note)
        thoughts = [thought.block() for _, thought in sorted(self._thoughts.items())]
        whole = [block for block in thoughts if block is not None]
        sealed = seal(self._owner, whole) if whole and len(whole) == len(thoughts) else ""
        for position, call in enumerate(self._calls):
            yield call.build(sealed if position == 0 else "")
        usage = self._usage
        read = (usage.input_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens)
        yield Usage(sum(tokens or 0 for tokens in read), usage.output_tokens or 0)

    def _count(self, usage: _Usage | None) -> None:
        """Take over what is told: each number is the sum so far, and later events leave some out."""
        for field in self._usage.__struct_fields__:
            if usage is not None and (value := getattr(usage, field)) is not None:
                setattr(self._usage, field, value)

    def _begin(self, index: int, block: _Block) -> Iterator[Piece | Progress]:
        match block.type:
            case "thinking" | "redacted_thinking":
                self._thoughts[index] = _Thinking(block)
                yield from self._delta(index, _Delta("thinking_delta", thinking=block.thinking))
            case "tool_use":
                self._by_index[index] = self._calls.begin(block.id, block.name)
                yield Progress()
            case "text":
                yield from self._delta(index, _Delta("text_delta", text=block.text))

    def _delta(self, index: int, delta: _Delta) -> Iterator[Piece | Progress]:
        match delta.type:
            case "text_delta":
                if text := self._text.join(delta.text):
                    yield TextPiece(text)
            case "thinking_delta":
                if thought := self._thinking.join(delta.thinking):
                    if index in self._thoughts:
                        self._thoughts[index].text.add(thought)
                    yield ThinkingPiece(thought)
            case "signature_delta":
                if index in self._thoughts:
                    self._thoughts[index].signature += delta.signature
            case "input_json_delta":
                if index in self._by_index:
                    self._calls.extend(self._by_index[index], delta.partial_json)
                yield Progress()
