"""Any endpoint that speaks OpenAI's chat completions: OpenAI, vLLM, Ollama, llama.cpp and many more."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec
import openai

from app.engine.model import ModelTurn, TextPiece, ThinkingPiece, ToolTurn, Usage, UserTurn
from app.engine.models.answer import CUT_OFF, FILTERED, Calls, Kept, read_json, seal, streamed, unseal
from app.engine.models.errors import ModelFailure
from app.engine.models.http import CONNECT_SECONDS, SHARED, make_http_client
from app.engine.models.provider import Progress
from app.engine.models.text import TextJoiner
from app.engine.models.turns import call_names, result_text
from app.engine.models.window import fit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from app.engine.model import Conversation, Piece
    from app.engine.models.answer import CallBuilder
    from app.engine.models.settings import ModelSettings
    from app.engine.models.sse import Event
    from app.tools.schema import ToolDescription

BASE_URL: Final = "https://api.openai.com/v1"
NO_KEY: Final = "none"
"""What is sent where no key is configured: servers of one's own ignore it, but the SDK wants one."""

_NOTES: Final = MappingProxyType({"length": CUT_OFF, "content_filter": FILTERED})


class OpenAIModel:
    """One model behind the official SDK, which builds the requests; the answers are read here, piece by piece."""

    def __init__(self, settings: ModelSettings, api_key: str) -> None:
        self._settings = settings
        self._client = openai.AsyncOpenAI(
            api_key=api_key or NO_KEY,
            base_url=settings.base_url or BASE_URL,
            max_retries=0,  # the cascade decides
            timeout=openai.Timeout(None, connect=CONNECT_SECONDS),
            http_client=make_http_client(),
        )

    def stream(
        self, conversation: Conversation
    ) -> AbstractAsyncContextManager[AsyncIterator[Piece | Progress]]:
        """Open the answer to the last turn."""
        body = request_of(conversation, self._settings)
        create: Callable[..., Any] = self._client.chat.completions.with_streaming_response.create
        return streamed(lambda: create(**body), ChatParser(self._settings.name))

    def shared(self) -> tuple[type, ...]:
        """Return the types of what its users share by design."""
        chat = self._client.chat
        sdk = (openai.AsyncOpenAI, type(chat), type(chat.completions), openai.NotGiven, openai.Omit)
        return (OpenAIModel, *sdk, *SHARED)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


# -- what is sent -------------------------------------------------------------------------------------


def request_of(conversation: Conversation, settings: ModelSettings) -> dict[str, Any]:
    """Return what the SDK is called with."""
    conversation = fit(conversation, settings.input_tokens)
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": messages_of(conversation, settings.name),
        "stream": True,
        "extra_body": dict(settings.options),
    }
    if conversation.tools:
        body["tools"] = [_function(tool) for tool in conversation.tools]
    if settings.stream_usage:
        body["stream_options"] = {"include_usage": True}
    if settings.max_output_tokens:
        # OpenAI has renamed it, and its newer models refuse the old name; others often know no other.
        limit = "max_tokens" if settings.base_url else "max_completion_tokens"
        body[limit] = settings.max_output_tokens
    return body


def _function(tool: ToolDescription) -> dict[str, Any]:
    described = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": described}


def messages_of(conversation: Conversation, owner: str) -> list[dict[str, Any]]:
    """Return the conversation as chat completions want it; `owner` is the model that reads it."""
    messages: list[dict[str, Any]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    names = call_names(conversation.turns)
    asked: list[str] = []
    for position, turn in enumerate(conversation.turns):
        match turn:
            case UserTurn():
                messages.append({"role": "user", "content": turn.text})
            case ModelTurn():
                asked = names.get(position, [])
                if turn.text or asked:
                    messages.append(_said(turn, asked, owner))
            case ToolTurn():
                messages += [
                    {"role": "tool", "tool_call_id": name, "content": result_text(result)}
                    for name, result in zip(asked, turn.results, strict=False)
                ]
    return messages


def _said(turn: ModelTurn, names: list[str], owner: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    if not names:
        return message
    message["tool_calls"] = calls = []
    for name, call in zip(names, turn.calls, strict=True):
        arguments = call.arguments
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        sent = {"id": name, "type": "function", "function": {"name": call.tool, "arguments": text}}
        for key, value in (unseal(owner, call.opaque) or {}).items():
            (sent if key == "extra_content" else message)[key] = value
        calls.append(sent)
    return message


# -- what comes back ----------------------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    extra_content: Any = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class ChatParser:
    """Understands the chunks of one answer, and the ways in which servers differ in them.

    Thinking comes as `reasoning_content` or `reasoning`. Parts of tool calls belong together by `index`, but some
    servers number all calls 0, or none, and only the `id` tells where the next one begins.
    """

    def __init__(self, owner: str) -> None:
        self.complete = self.done = False
        self._owner = owner
        self._finish: str | None = None
        self._usage: _Usage | None = None
        self._text, self._thinking = TextJoiner(), TextJoiner()
        self._thought = {"reasoning_content": Kept(), "reasoning": Kept()}
        self._calls = Calls()
        self._by_index: dict[int, CallBuilder] = {}

    def feed(self, event: Event) -> Iterator[Piece | Progress]:
        """Yield what a chunk brings."""
        if event.data.startswith(b"[DONE]"):
            self.complete = self.done = True
            return
        chunk = self._chunk(event)
        self._usage = chunk.usage or self._usage  # some send it with every chunk, each the sum so far
        for choice in (chunk.choices or [])[:1]:
            if choice.delta is not None:
                yield from self._delta(choice.delta)
            if choice.finish_reason:
                self._finish = choice.finish_reason
                self.complete = True

    def end(self) -> Iterator[Piece]:
        """Yield the calls, which are whole now, and the usage."""
        if note := _NOTES.get(self._finish or ""):
            yield TextPiece(note)
        thought = {key: str(kept) for key, kept in self._thought.items() if str(kept)}
        for position, call in enumerate(self._calls):
            extra = {"extra_content": call.opaque} if call.opaque is not None else {}
            sent_back = extra | (thought if position == 0 else {})
            yield call.build(seal(self._owner, sent_back) if sent_back else "")
        usage = self._usage or _Usage()
        yield Usage(usage.prompt_tokens or 0, usage.completion_tokens or 0)

    def _chunk(self, event: Event) -> _Chunk:
        try:
            chunk = msgspec.convert(read_json(event.data), _Chunk)
        except msgspec.ValidationError:
            raise ModelFailure("sent what is no chat completion") from None
        if chunk.error is not None:
            raise _told(chunk.error)
        return chunk

    def _delta(self, delta: _Delta) -> Iterator[Piece | Progress]:
        for key, kept in self._thought.items():
            if (thought := getattr(delta, key)) and (thought := self._thinking.join(thought)):
                kept.add(thought)
                yield ThinkingPiece(thought)
                break  # a server that sends both says the same twice
        for text in (delta.content, delta.refusal):
            if text and (text := self._text.join(text)):
                yield TextPiece(text)
        for part in delta.tool_calls or []:
            self._call(part)
            yield Progress()

    def _call(self, part: _Call) -> None:
        index = part.index if part.index is not None else max(len(self._calls) - 1, 0)
        call = self._by_index.get(index)
        if call is None or (part.id and call.call_id and part.id != call.call_id):
            call = self._by_index[index] = self._calls.begin("", "")
        function = part.function or _Function()
        call.call_id = call.call_id or part.id or ""
        call.tool = call.tool or function.name or ""
        call.opaque = part.extra_content if part.extra_content is not None else call.opaque
        if function.arguments:
            text = function.arguments
            self._calls.extend(call, text if isinstance(text, str) else msgspec.json.encode(text).decode())


def _told(error: Any) -> ModelFailure:
    """Return the failure that an error in the middle of a stream stands for."""
    fields = error if isinstance(error, dict) else {"message": error}
    code = fields.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return ModelFailure(status=status, kind=str(fields.get("type") or ""), detail=str(fields))
