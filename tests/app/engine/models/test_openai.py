"""What is sent to an endpoint of OpenAI's kind, and how the ways are understood in which such servers differ."""

import json

import pytest

from app.engine.model import (
    Conversation,
    ModelTurn,
    TextPiece,
    ThinkingPiece,
    ToolCall,
    ToolTurn,
    Usage,
    UserTurn,
)
from app.engine.models.answer import MAX_ARGUMENTS, MAX_CALLS
from app.engine.models.errors import ModelFailure
from app.engine.models.openai import ChatParser, OpenAIModel, messages_of, request_of
from app.engine.models.provider import Progress
from app.engine.models.settings import ModelSettings
from app.engine.models.sse import Event
from app.tools.calls import ToolResult


def understood(*chunks, done=True):
    """Return the pieces of an answer that comes in these chunks."""
    parser = ChatParser("mine")
    pieces = []
    for chunk in [*chunks, *([b"[DONE]"] if done else [])]:
        data = chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()
        pieces += parser.feed(Event("", data))
    assert parser.complete
    return [*pieces, *parser.end()]


def delta(finish_reason=None, **fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def calling(index=None, call_id=None, name=None, arguments=None, **fields):
    call = {"function": {"name": name, "arguments": arguments}, "id": call_id, "index": index, **fields}
    return delta(tool_calls=[{key: value for key, value in call.items() if value is not None}])


def calls(pieces):
    return [(piece.call_id, piece.tool, piece.arguments) for piece in pieces if isinstance(piece, ToolCall)]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_thinking_has_two_names(key):
    """Both are thinking and not text; a server that sends both at once says the same twice."""
    pieces = understood(delta(**{key: "hm"}), delta(content="yes", role="assistant"))
    assert pieces[:-1] == [ThinkingPiece("hm"), TextPiece("yes")]
    assert understood(delta(reasoning="hm", reasoning_content="hm"))[:-1] == [ThinkingPiece("hm")]


def test_a_refusal_is_an_answer():
    """What the model says instead of an answer is said to the user."""
    assert understood(delta(refusal="I will not."))[0] == TextPiece("I will not.")


@pytest.mark.parametrize(
    "parts",
    [
        # OpenAI: by index, with the id in the first part only
        [(0, "a", "add", '{"x"'), (1, "b", "sub", ""), (0, None, None, ":1}"), (1, None, None, '{"x":2}')],
        # each call in one part, all of them number 0
        [(0, "a", "add", '{"x":1}'), (0, "b", "sub", '{"x":2}')],
        # no numbers at all
        [(None, "a", "add", '{"x"'), (None, None, None, ":1}"), (None, "b", "sub", '{"x":2}')],
        # the id repeated in every part, and arguments that are JSON already
        [(0, "a", "add", '{"x"'), (0, "a", "add", ":1}"), (1, "b", "sub", {"x": 2})],
    ],
)
def test_parts_of_calls_are_put_together(parts):
    """Whatever a server numbers them, the calls are the same; each part shows that the model is alive."""
    pieces = understood(*(calling(*part) for part in parts), delta(finish_reason="tool_calls"))
    assert calls(pieces) == [("a", "add", {"x": 1}), ("b", "sub", {"x": 2})]
    assert pieces.count(Progress()) == len(parts)


@pytest.mark.parametrize(
    ("text", "arguments"), [("", {}), ("{not json", "{not json"), ("[1]", [1]), (" ", {})]
)
def test_arguments_that_are_none(text, arguments):
    """None at all are an empty object; what is not JSON stays as it is, for the dispatcher to refuse."""
    assert calls(understood(calling(0, "a", "add", text))) == [("a", "add", arguments)]


def test_usage_may_come_often():
    """Each number is the sum so far: the last one counts. A server that counts nothing costs nothing."""
    counted = [{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": n}} for n in (1, 2, 3)]
    assert understood(delta(content="x"), *counted)[-1] == Usage(7, 3)
    assert understood({"choices": [], "usage": None})[-1] == Usage(0, 0)


def test_a_finish_reason_is_enough():
    """Some servers end without `[DONE]`; only a stream without either was cut."""
    assert understood(delta("stop", content="x"), done=False)[0] == TextPiece("x")
    parser = ChatParser("mine")
    assert list(parser.feed(Event("", json.dumps(delta(content="x")).encode()))) == [TextPiece("x")]
    assert not parser.complete


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "m", "type": "overloaded", "code": 503}, 503),
        ({"message": "m", "type": "server_error", "code": "oops"}, 500),
        ("plain words", 500),
    ],
)
def test_an_error_in_the_stream_is_a_failure(error, status):
    """It may come with status 200, before or after text."""
    with pytest.raises(ModelFailure) as failed:
        understood({"error": error})
    assert failed.value.status == status
    assert "words" not in str(failed.value)


@pytest.mark.parametrize(
    "data",
    [b"{", b"[1]", b'{"choices": 1}', b"[" * 100_000, b'{"choices": [{"delta": {"content": 5}}]}'],
    ids=["cut", "list", "type", "depth", "text"],
)
def test_what_is_no_chunk_is_a_failure(data):
    """Whatever comes, it is understood or it is a failure of the model."""
    with pytest.raises(ModelFailure, match="sent what is"):
        understood(data)


def test_calls_are_bounded():
    """Neither many calls nor long arguments fill the memory."""
    with pytest.raises(ModelFailure, match="too many tools"):
        understood(*(calling(n, f"c{n}", "add", "{}") for n in range(MAX_CALLS + 1)))
    with pytest.raises(ModelFailure, match="too long"):
        understood(*(calling(0, "a", "add", "x" * 1024) for _ in range(MAX_ARGUMENTS // 1024 + 1)))


def test_what_a_model_wants_to_see_again_is_sent_to_it_alone():
    """Its thinking and what it attached to a call go back with the call; another model gets neither."""
    pieces = understood(
        delta(reasoning_content="because "),
        delta(reasoning_content="of that"),
        calling(0, "a", "add", "{}", extra_content={"signature": "s"}),
        calling(1, "b", "add", "{}"),
    )
    made = tuple(piece for piece in pieces if isinstance(piece, ToolCall))
    results = tuple(ToolResult(call.call_id, "add", ok=True, milliseconds=1, result="1") for call in made)
    conversation = Conversation("", (UserTurn("q"), ModelTurn("", made), ToolTurn(results)))
    mine, other = messages_of(conversation, "mine")[1], messages_of(conversation, "other")[1]
    assert mine["reasoning_content"] == "because of that"
    assert [call.get("extra_content") for call in mine["tool_calls"]] == [{"signature": "s"}, None]
    assert set(other) == {"role", "content", "tool_calls"}
    assert "extra_content" not in other["tool_calls"][0]


def test_calls_have_names_that_every_provider_accepts():
    """A name stays, unless it is missing, strange or taken; results go under the same name."""
    names = ["", "ok", "ok", "white space", "x" * 65]
    made = tuple(ToolCall(name, "add", {}) for name in names)
    results = tuple(ToolResult(name, "add", ok=True, milliseconds=1, result="1") for name in names)
    turns = (
        UserTurn("q"),
        ModelTurn("", made),
        ToolTurn(results),
        ModelTurn("", made[1:2]),
        ToolTurn(results[1:2]),
    )
    messages = messages_of(Conversation("", turns), "mine")
    sent = [call["id"] for message in messages for call in message.get("tool_calls", [])]
    assert len(set(sent)) == len(sent) == 6
    assert sent[1] == "ok"
    assert all(len(name) == 9 and name.isalnum() for name in sent if name != "ok")
    assert [message["tool_call_id"] for message in messages if message["role"] == "tool"] == sent


def test_an_answer_without_words_is_left_out():
    """A run that was cancelled before it said anything leaves no message that a provider would refuse."""
    messages = messages_of(Conversation("s", (UserTurn("a"), ModelTurn(""), UserTurn("b"))), "mine")
    assert [message["role"] for message in messages] == ["system", "user", "user"]


def test_the_limit_has_the_name_that_the_endpoint_knows():
    """OpenAI refuses the old name of the output limit; many others know no other."""
    question = Conversation("", (UserTurn("q"),))

    def sent(**settings):
        return request_of(question, ModelSettings("openai", "m", max_output_tokens=5, **settings))

    theirs, others = sent(), sent(base_url="http://127.0.0.1:1/v1", stream_usage=False)
    assert theirs["max_completion_tokens"] == others["max_tokens"] == 5
    assert "max_tokens" not in theirs
    assert theirs["stream_options"] == {"include_usage": True}
    assert "stream_options" not in others


async def test_nobody_else_is_asked(monkeypatch):
    """Where the settings name no endpoint it is OpenAI's own, whatever a variable of the SDK says."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://example.org")
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    model = OpenAIModel(ModelSettings("openai", "m"), "mine")
    assert str(model._client.base_url) == "https://api.openai.com/v1/"
    assert model._client.api_key == "mine"
    assert model._client.max_retries == 0
    await model.aclose()
    own = OpenAIModel(ModelSettings("openai", "m", base_url="http://127.0.0.1:1/v1"), "")
    assert own._client.api_key == "none"
    await own.aclose()
