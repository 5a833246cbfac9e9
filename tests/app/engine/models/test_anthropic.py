"""What is sent to Anthropic, and how its events are understood."""

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
from app.engine.models.answer import CUT_OFF, FILTERED, MAX_OPAQUE
from app.engine.models.anthropic import AnthropicModel, MessageParser
from app.engine.models.anthropic_request import MAX_TOKENS, messages_of, request_of
from app.engine.models.errors import ModelFailure
from app.engine.models.settings import ModelSettings
from app.engine.models.sse import Event
from app.tools.calls import ToolResult

STOP = {"type": "message_stop"}


def understood(*events):
    """Return the pieces of an answer that comes in these events."""
    parser = MessageParser("mine")
    pieces = []
    for event in [*events, STOP]:
        pieces += parser.feed(Event(event["type"], json.dumps(event).encode()))
    assert parser.complete
    return [*pieces, *parser.end()]


def begin(index, kind, **fields):
    return {"type": "content_block_start", "index": index, "content_block": {"type": kind, **fields}}


def delta(index, kind, **fields):
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def thinking(index, text, signature="s"):
    return [
        begin(index, "thinking", thinking="", signature=""),
        delta(index, "thinking_delta", thinking=text),
        *([delta(index, "signature_delta", signature=signature)] if signature else []),
    ]


def call(index, call_id="a", text='{"x":1}'):
    return [
        begin(index, "tool_use", id=call_id, name="add", input={}),
        delta(index, "input_json_delta", partial_json=text[:3]),
        delta(index, "input_json_delta", partial_json=text[3:]),
    ]


def only(kind, pieces):
    return [piece for piece in pieces if isinstance(piece, kind)]


def test_usage_is_the_last_sum():
    """What was read from and written to the cache was read as well; each event tells the sum so far."""
    read = {
        "input_tokens": 5,
        "cache_creation_input_tokens": 10,
        "cache_read_input_tokens": 20,
        "output_tokens": 1,
    }
    counted = [{"type": "message_delta", "delta": {}, "usage": {"output_tokens": n}} for n in (3, 9)]
    assert understood({"type": "message_start", "message": {"usage": read}}, *counted) == [Usage(35, 9)]


@pytest.mark.parametrize(
    ("reason", "note"),
    [
        ("max_tokens", CUT_OFF),
        ("model_context_window_exceeded", CUT_OFF),
        ("refusal", FILTERED),
        ("end_turn", ""),
    ],
)
def test_the_end_is_explained(reason, note):
    """An answer that is shorter than it should be says so."""
    pieces = understood(
        delta(0, "text_delta", text="x"), {"type": "message_delta", "delta": {"stop_reason": reason}}
    )
    assert "".join(piece.text for piece in only(TextPiece, pieces)) == "x" + note


@pytest.mark.parametrize(
    ("kind", "status"),
    [("overloaded_error", 529), ("rate_limit_error", 429), ("invalid_request_error", 400), ("new", 500)],
)
def test_an_error_in_the_stream_is_a_failure(kind, status):
    """It comes with status 200 and stands for another one."""
    with pytest.raises(ModelFailure) as failed:
        understood({"type": "error", "error": {"type": kind, "message": "words"}})
    assert (failed.value.status, failed.value.kind) == (status, kind)
    assert "words" not in str(failed.value)


def test_events_that_mean_nothing_are_passed_over():
    """Pings, and what has been added since, are no answer and no failure."""
    strange = [
        {"type": "ping"},
        {"type": "news"},
        begin(7, "web_search"),
        delta(7, "citations_delta"),
        delta(8, "text_delta"),
    ]
    assert understood(*strange) == [Usage(0, 0)]


def test_what_is_no_event_is_a_failure():
    """Whatever comes, it is understood or it is a failure of the model."""
    for data in (b"{", b"5", b'{"type": 5}', b'{"delta": {"text": 1}}'):
        with pytest.raises(ModelFailure, match="sent what is"):
            list(MessageParser("mine").feed(Event("content_block_delta", data)))


def made_by(*events):
    calls = tuple(only(ToolCall, understood(*events)))
    results = tuple(ToolResult(each.call_id, "add", ok=True, milliseconds=1, result="1") for each in calls)
    return (UserTurn("q"), ModelTurn("well", calls), ToolTurn(results))


def test_thinking_goes_back_with_its_calls():
    """To the letter, with its signature, before the calls; and to the model that thought it alone."""
    redacted = begin(1, "redacted_thinking", data="blob")
    turns = made_by(*thinking(0, "because "), redacted, *call(2), *call(3, "b"))
    mine, other = messages_of(turns, "mine")[1]["content"], messages_of(turns, "other")[1]["content"]
    assert [block["type"] for block in mine] == [
        "thinking",
        "redacted_thinking",
        "text",
        "tool_use",
        "tool_use",
    ]
    assert mine[0] == {"type": "thinking", "thinking": "because ", "signature": "s"}
    assert mine[1] == {"type": "redacted_thinking", "data": "blob"}
    assert [block["type"] for block in other] == ["text", "tool_use", "tool_use"]
    pieces = understood(*thinking(0, "hm"))
    assert only(ThinkingPiece, pieces) == [ThinkingPiece("hm")]


@pytest.mark.parametrize(
    ("events", "owner", "goes_on"),
    [
        ([*thinking(0, "hm"), *call(1)], "mine", True),
        ([*thinking(0, "hm"), *call(1)], "other", False),
        (call(0), "mine", False),
        ([*thinking(0, "hm", signature=""), *call(1)], "mine", False),
        ([*thinking(0, "x" * (MAX_OPAQUE + 1)), *call(1)], "mine", False),
    ],
)
def test_thinking_is_off_while_it_could_not_go_on(events, owner, goes_on):
    """The provider refuses it where the thinking behind open calls is missing; the next question has it again."""
    settings = ModelSettings(
        "anthropic", "m", name=owner, options={"thinking": {"type": "enabled"}, "top_k": 5}
    )
    turns = made_by(*events)
    sent = request_of(Conversation("", turns), settings)
    assert ("thinking" in sent["extra_body"]) is goes_on
    assert sent["extra_body"]["top_k"] == 5
    later = request_of(Conversation("", (*turns, ModelTurn("1"), UserTurn("and now?"))), settings)
    assert "thinking" in later["extra_body"]


def test_messages_are_such_as_are_accepted():
    """None is empty, arguments are objects, failed calls are marked, and there is always a limit."""
    calls = (ToolCall("a b", "add", "{not json"), ToolCall("c", "add", {"x": 1}))
    results = (
        ToolResult("a b", "add", ok=False, milliseconds=1, error="no object"),
        ToolResult("c", "add", ok=True, milliseconds=1, result={"sum": 1}),
    )
    turns = (UserTurn("q"), ModelTurn(" \n"), ModelTurn("", calls), ToolTurn(results), UserTurn("r"))
    sent = request_of(Conversation("", turns), ModelSettings("anthropic", "m"))
    assert "system" not in sent
    assert "tools" not in sent
    assert sent["max_tokens"] == MAX_TOKENS
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user", "user"]
    uses, told = sent["messages"][1]["content"], sent["messages"][2]["content"]
    assert [use["input"] for use in uses] == [{}, {"x": 1}]
    assert [use["id"] for use in uses] == [result["tool_use_id"] for result in told] == ["call00000", "c"]
    assert [(result["content"], result["is_error"]) for result in told] == [
        ("Error: no object", True),
        ('{"sum":1}', False),
    ]


async def test_nobody_else_is_asked(monkeypatch):
    """Where the settings name no endpoint it is Anthropic's own, whatever variables of the SDK say."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://example.org")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "theirs")
    model = AnthropicModel(ModelSettings("anthropic", "m"), "mine")
    assert str(model._client.base_url).rstrip("/") == "https://api.anthropic.com"
    assert (model._client.api_key, model._client.auth_token) == ("mine", None)
    assert model._client.max_retries == 0
    await model.aclose()
