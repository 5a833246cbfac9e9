"""Both SDKs against a third party's server that speaks as their providers do."""

import gc
import json
import ssl
import traceback
import weakref

import pytest
import trio
import trustme

from app.engine.engine import built_in_tools
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
from app.engine.models.answer import CUT_OFF
from app.engine.models.errors import ModelInterrupted, ModelRefused, ModelUnavailable
from app.engine.models.making import open_models
from app.tools.calls import ToolResult
from tests.fixtures.aimock import KEY, MODELS, tapped
from tests.serving.faults import Faults

TOOLS = tuple(tool.describe() for tool in built_in_tools().select(("calculator", "search_messages", "clock")))
pytestmark = [
    pytest.mark.parametrize("kind", ["openai", "anthropic"]),
    pytest.mark.filterwarnings("error:Async generator:ResourceWarning"),  # none may be left to the collector
]


def asked(*turns, system="Be brief.", tools=()):
    return Conversation(
        system, tuple(UserTurn(turn) if isinstance(turn, str) else turn for turn in turns), tools
    )


async def answer(model, conversation):
    """Return all pieces of an answer."""
    async with model.stream(conversation) as pieces:
        return [piece async for piece in pieces]


def text(pieces):
    return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))


def of(kind, pieces):
    return [piece for piece in pieces if isinstance(piece, kind)]


async def test_an_answer_is_streamed(kind, aimock):
    """Text and thinking come piece by piece, then the usage; the request holds the conversation and nothing else."""
    how = {"reasoning": "let me think", "usage": USAGE[kind]}
    await aimock.says("three", {"content": "The answer in pieces.", **how}, chunkSize=4)
    async with open_models([aimock.model(kind, max_output_tokens=77, options={"temperature": 0.5})]) as model:
        pieces = await answer(model, asked("one", ModelTurn("two"), "three"))
    name = MODELS[kind]
    assert pieces[0] == Usage(0, 0, name)
    assert len(of(ThinkingPiece, pieces)) == 3
    assert [piece.text for piece in of(TextPiece, pieces)] == ["The ", "answ", "er i", "n pi", "eces", "."]
    assert pieces[-1] == Usage(11, 5, name)
    (entry,) = await aimock.journal()
    assert entry["path"] == {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[kind]
    assert entry["headers"]["accept-encoding"] == "identity"
    body = entry["body"]
    assert (body["model"], body["stream"], body["temperature"]) == (name, True, 0.5)
    assert body.get("max_tokens", body.get("max_completion_tokens")) == 77
    assert "tools" not in body
    said = [(message["role"], text_of(message)) for message in body["messages"]]
    assert said == [("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "three")]


USAGE = {
    "openai": {"prompt_tokens": 11, "completion_tokens": 5},
    "anthropic": {"input_tokens": 11, "output_tokens": 5},
}


def text_of(message):
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def test_tools_go_round(kind, aimock):
    """Calls come whole and in their order, with text before them; their results reach the model under their names."""
    calls = [
        {"name": "calculator", "arguments": {"expression": "6*7 \U0001f600"}, "id": "first"},
        {"name": "clock", "arguments": {}, "id": "second"},
        {"name": "calculator", "arguments": "[1]", "id": "third"},
    ]
    response = {"content": "let me see", "toolCalls": calls}
    await aimock.says({"userMessage": "both", "hasToolResult": False}, response, chunkSize=1)
    await aimock.says({"userMessage": "both", "hasToolResult": True}, "42, at noon")
    async with open_models([aimock.model(kind)]) as model:
        pieces = await answer(model, asked("both", tools=TOOLS))
        made = of(ToolCall, pieces)
        assert text(pieces) == "let me see"
        assert [(call.call_id, call.tool, call.arguments) for call in made] == [
            ("first", "calculator", {"expression": "6*7 \U0001f600"}),
            ("second", "clock", {}),
            ("third", "calculator", [1]),
        ]
        results = (
            ToolResult("first", "calculator", ok=True, milliseconds=1, result="42"),
            ToolResult("second", "clock", ok=True, milliseconds=1, result={"utc": "noon"}),
            ToolResult("third", "calculator", ok=False, milliseconds=1, error="arguments: not an object"),
        )
        turns = ("both", ModelTurn("let me see", tuple(made)), ToolTurn(results))
        assert text(await answer(model, asked(*turns, tools=TOOLS))) == "42, at noon"
    first, second = await aimock.requests()
    assert [tool["function"]["name"] for tool in first["tools"]] == [tool.name for tool in TOOLS]
    assert first["tools"][0]["function"]["parameters"] == TOOLS[0].parameters
    told = [message for message in second["messages"] if message["role"] == "tool"]
    assert [(message["tool_call_id"], message["content"]) for message in told] == [
        ("first", "42"),
        ("second", '{"utc":"noon"}'),
        ("third", "Error: arguments: not an object"),
    ]
    said = next(message for message in second["messages"] if message["role"] == "assistant")
    assert [call["id"] for call in said["tool_calls"]] == ["first", "second", "third"]
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"expression": "6*7 \U0001f600"}


async def test_characters_that_arrive_in_halves_are_joined(kind, aimock):
    """The server cuts an emoji in two; nobody sees it."""
    await aimock.says("smile", "a\U0001f600b\U0001f601\U0001f602", chunkSize=1)
    async with open_models([aimock.model(kind)]) as model:
        assert text(await answer(model, asked("smile"))) == "a\U0001f600b\U0001f601\U0001f602"


async def test_an_answer_that_reaches_its_limit_says_so(kind, aimock):
    """The user learns that there was more to say."""
    await aimock.says("all", {"content": "a, b, c", "finishReason": "length"})
    async with open_models([aimock.model(kind)]) as model:
        assert text(await answer(model, asked("all"))) == "a, b, c" + CUT_OFF


async def test_a_busy_model_is_left_alone(kind, aimock):
    """After 429 the next model answers, and the first one is not even asked until its time has come."""
    await aimock.refuses("hello", 429, model="busy", retryAfter=120)
    await aimock.says("hello", "hi", model="free")
    models = [aimock.model(kind, name="busy"), aimock.model(kind, name="free")]
    async with open_models(models) as model:
        for _ in range(3):
            pieces = await answer(model, asked("hello"))
            assert text(pieces) == "hi"
            assert {piece.model for piece in of(Usage, pieces)} == {"free"}
        busy, free = model.statistics()
        assert 100 < busy.busy_seconds <= 120
        assert (busy.failed, free.answered) == (1, 3)
    assert [body["model"] for body in await aimock.requests()] == ["busy", "free", "free", "free"]


async def test_the_only_model_is_waited_for_if_it_is_busy_for_a_moment(kind, aimock):
    """One that wants a second gets it; one that wants minutes gives an error that says when to come back."""
    await aimock.refuses({"userMessage": "soon", "sequenceIndex": 0}, 429, retryAfter=1)
    await aimock.says({"userMessage": "soon", "sequenceIndex": 1}, "now")
    await aimock.refuses("late", 429, retryAfter=120)
    async with open_models([aimock.model(kind)]) as model:
        began = trio.current_time()
        assert text(await answer(model, asked("soon"))) == "now"
        assert trio.current_time() >= began + 1
        with pytest.raises(ModelUnavailable) as refused:
            await answer(model, asked("late"))
        assert 110 < refused.value.retry_after <= 120
    assert len(await aimock.requests()) == 3


async def test_a_failing_model_is_followed_by_the_next(kind, aimock):
    """After 500 the next one answers, of whichever provider it is."""
    other = {"openai": "anthropic", "anthropic": "openai"}[kind]
    await aimock.refuses("hello", 500, model="broken")
    await aimock.says("hello", "hi")
    async with open_models([aimock.model(kind, name="broken"), aimock.model(other)]) as model:
        pieces = await answer(model, asked("hello"))
    assert text(pieces) == "hi"
    assert {piece.model for piece in of(Usage, pieces)} == {MODELS[other]}


@pytest.mark.parametrize("status", [400, 401, 404, 500])
async def test_errors_quote_nobody(kind, aimock, status, caplog):
    """What the user is told has words of ours alone: no key, no address, nothing that the provider says."""
    await aimock.refuses("hello", status)
    async with open_models([aimock.model(kind)]) as model:
        with pytest.raises(ModelUnavailable if status == 500 else ModelRefused) as refused:
            await answer(model, asked("hello"))
    told = str(refused.value)
    assert told.startswith("No language model ")
    assert MODELS[kind] in told
    shown = "".join(traceback.format_exception(refused.value))
    shown += "".join(record.getMessage() for record in caplog.records if record.levelname != "DEBUG")
    for secret in (KEY, aimock.url, "words of the provider"):
        assert secret not in shown


async def test_a_stream_that_is_cut_is_not_begun_again(kind, aimock):
    """What was said is kept, the answer ends in an error, and the next model is not asked."""
    cut = {"latency": 20, "chunkSize": 4, "truncateAfterChunks": 4}
    await aimock.says("hello", "Half of what I wanted to say", model="first", **cut)
    await aimock.says("hello", "never said", model="second")
    models = [aimock.model(kind, name="first"), aimock.model(kind, name="second")]
    said = []
    async with open_models(models) as model:
        with pytest.raises(ModelInterrupted, match="first did not finish its answer"):
            async with model.stream(asked("hello")) as pieces:
                async for piece in pieces:
                    said.append(piece)  # noqa: PERF401  # what came before the error counts
        assert model.statistics()[0].failed == 1
    assert "Half of what I".startswith(text(said))
    assert text(said)
    assert [body["model"] for body in await aimock.requests()] == ["first"]


async def test_a_stream_that_is_cut_before_it_began_is_asked_of_the_next(kind, aimock):
    """Nothing has been said, so nothing is said twice."""
    await aimock.says("hello", "never", model="first", truncateAfterChunks=1)
    await aimock.says("hello", "hi", model="second")
    models = [aimock.model(kind, name="first"), aimock.model(kind, name="second")]
    async with open_models(models) as model:
        assert text(await answer(model, asked("hello"))) == "hi"


async def test_calls_of_a_stream_that_is_cut_are_not_handed_on(kind, aimock):
    """Half of a tool call is nothing, and may be asked for anew: nothing has been executed."""
    calls = [
        {"name": "calculator", "arguments": {"expression": "1+" * 50 + "1"}},
        {"name": "clock", "arguments": {}},
    ]
    cut = {"latency": 5, "chunkSize": 10, "truncateAfterChunks": 8}
    await aimock.says("hello", {"toolCalls": calls}, model="first", **cut)
    await aimock.says("hello", {"toolCalls": calls}, model="second")
    models = [aimock.model(kind, name="first"), aimock.model(kind, name="second")]
    async with open_models(models) as model:
        pieces = await answer(model, asked("hello", tools=TOOLS))
    assert [call.tool for call in of(ToolCall, pieces)] == ["calculator", "clock"]
    assert {piece.model for piece in of(Usage, pieces)} == {"second"}


async def test_what_is_no_stream_at_all_fails(kind, aimock):
    """A page of a gateway, with status 200, is no answer."""
    await aimock.says("hello", "x", chaos={"malformedRate": 1})
    async with open_models([aimock.model(kind)]) as model:
        with pytest.raises(ModelUnavailable, match="broke off"):
            await answer(model, asked("hello"))


@pytest.mark.parametrize("moment", ["before the first piece", "between pieces", "while nobody reads"])
async def test_a_cancelled_answer_closes_the_connection(kind, aimock, moment):
    """The provider sees it long before it would have been done, wherever the answer stood."""
    latency = 3_600_000 if moment == "before the first piece" else 100
    await aimock.says("hello", "x" * 1000, latency=latency, chunkSize=1)
    async with tapped(aimock.url) as tap, open_models([aimock.model(kind, url=tap.url)]) as model:
        speaking = trio.Event()

        async def listen():
            async with model.stream(asked("hello")) as pieces:
                async for piece in pieces:
                    if isinstance(piece, TextPiece):
                        speaking.set()
                        if moment == "while nobody reads":
                            await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await (tap.request_seen() if moment == "before the first piece" else speaking.wait())
            assert not tap.closed
            nursery.cancel_scope.cancel()
        await tap.hang_up_seen()


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """What a server speaks TLS with whose certificate is of an authority that this process trusts."""
    authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return context


async def test_https(kind, aimock, tls):
    """Answers come over TLS as well, and a cancelled one closes its connection."""
    await aimock.says("hello", "hi")
    await aimock.says("more", "x" * 1000, latency=100, chunkSize=1)
    async with tapped(aimock.url, tls=tls) as tap, open_models([aimock.model(kind, url=tap.url)]) as model:
        assert text(await answer(model, asked("hello"))) == "hi"
        with trio.CancelScope() as scope:
            async with model.stream(asked("more")) as pieces:
                async for piece in pieces:
                    if isinstance(piece, TextPiece):
                        scope.cancel()
        await tap.hang_up_seen()


async def test_https_with_somebody_else(kind, aimock, tls, monkeypatch):
    """A server whose certificate nobody vouches for hears neither the conversation nor the key."""
    monkeypatch.delenv("SSL_CERT_FILE")
    async with tapped(aimock.url, tls=tls) as tap, open_models([aimock.model(kind, url=tap.url)]) as model:
        with pytest.raises(ModelUnavailable, match="cannot be reached"):
            await answer(model, asked("hello"))
        assert tap.heard == b""


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_a_cancelled_handshake_closes_the_connection(kind, aimock):
    """A server that never answers the first bytes of TLS is left at once as well."""
    heard, closed = trio.Event(), trio.Event()

    async def deaf(stream):
        while await stream.receive_some():
            heard.set()
        closed.set()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}"
    async with trio.open_nursery() as server, open_models([aimock.model(kind, url=url)]) as model:
        server.start_soon(trio.serve_listeners, deaf, [listener])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, model, asked("hello"))
            await heard.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(30):
            await closed.wait()
        server.cancel_scope.cancel()


async def test_an_answer_that_is_left_closes_the_connection(kind, aimock):
    """Whoever has heard enough pays for no more; no generator is left to the garbage collector."""
    await aimock.says("hello", "x" * 1000, latency=100, chunkSize=1)
    async with tapped(aimock.url) as tap, open_models([aimock.model(kind, url=tap.url)]) as model:
        async with model.stream(asked("hello")) as pieces:
            async for piece in pieces:
                if isinstance(piece, TextPiece):
                    break
        await tap.hang_up_seen()
        assert model.statistics()[0].failed == 0
        del pieces, piece
        gc.collect()  # would warn


@pytest.mark.parametrize("faults", [Faults(), Faults(slice_bytes=1)], ids=["whole", "sliced"])
async def test_connections_are_used_again(kind, aimock, faults, monkeypatch):
    """An answer that was heard to its end leaves its connection for the next one, also if its very end comes late."""
    monkeypatch.setattr("app.engine.models.http.REUSE_SECONDS", 30)
    await aimock.says("hello", "hi")
    async with tapped(aimock.url, faults) as tap:
        async with open_models([aimock.model(kind, url=tap.url)]) as model:
            for _ in range(3):
                assert text(await answer(model, asked("hello"))) == "hi"
            assert (tap.opened, tap.closed) == (1, 0)
        await tap.hang_up_seen()


async def test_a_stream_that_is_left_open_has_ended(kind, aimock):
    """The last event ends the answer, whatever the connection does then; nobody waits for it."""
    await aimock.says("hello", "hi")
    async with tapped(aimock.url) as tap, open_models([aimock.model(kind, url=tap.url)]) as model:
        tap.edit = lambda data: data.removesuffix(b"0\r\n\r\n")
        assert text(await answer(model, asked("hello"))) == "hi"
        await tap.hang_up_seen()


async def test_nothing_of_one_user_reaches_the_next(kind, aimock):
    """A cookie that came with one answer is not sent with another request, on the same connection or not."""
    await aimock.says("hello", "hi")
    async with tapped(aimock.url) as tap, open_models([aimock.model(kind, url=tap.url)]) as model:
        tap.edit = lambda data: data.replace(b" OK\r\n", b" OK\r\nSet-Cookie: session=alice; Path=/\r\n")
        await answer(model, asked("hello, I am alice"))
        tap.edit = bytes
        await answer(model, asked("hello, I am bob"))
    first, second = await aimock.requests()
    assert "alice" in str(first)
    assert "alice" not in str(second)
    assert b"cookie" not in tap.heard.lower()


async def test_nobody_else_gets_the_key(kind, aimock):
    """A provider that sends requests elsewhere is not followed: it refuses."""
    await aimock.says("hello", "hi")
    async with tapped(aimock.url) as tap, open_models([aimock.model(kind, url=tap.url)]) as model:
        elsewhere = f" 307 Elsewhere\r\nLocation: {aimock.url}/v1/chat/completions\r\n".encode()
        tap.edit = lambda data: data.replace(b" 200 OK\r\n", elsewhere)
        with pytest.raises(ModelRefused):
            await answer(model, asked("hello"))
    assert len(await aimock.requests()) == 1


async def test_conversations_at_the_same_time_do_not_mix(kind, aimock):
    """Fifty users through one model: each request has one user's canary, and each user hears their own."""
    names = [f"canary-{number:02d}" for number in range(50)]
    for name in names:
        await aimock.says(name, f"for {name} alone", chunkSize=3, latency=1)
    heard = {}
    async with open_models([aimock.model(kind)]) as model, trio.open_nursery() as nursery:

        async def converse(name):
            heard[name] = text(
                await answer(model, asked(f"{name}!", ModelTurn(f"yes {name}"), f"more {name}"))
            )

        for name in names:
            nursery.start_soon(converse, name)
    assert heard == {name: f"for {name} alone" for name in names}
    bodies = await aimock.requests()
    assert sorted(name for name in names for body in bodies if name in json.dumps(body)) == names


async def test_nothing_of_a_conversation_stays(kind, aimock):
    """When the answer is over, the model holds nothing of what it was told."""
    await aimock.says("hello", "hi")
    async with open_models([aimock.model(kind)]) as model:
        conversation = asked("hello")
        gone = weakref.ref(conversation.turns[0])
        await answer(model, conversation)
        del conversation
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("faults", [Faults(slice_bytes=1), Faults(latency=0.05, slice_bytes=50)])
async def test_a_bad_network_changes_nothing(kind, aimock, faults):
    """Events arrive byte by byte, or late, and are the same."""
    await aimock.says("hello", {"content": "the whole \u00e4nswer", "reasoning": "hm"}, chunkSize=5)
    async with tapped(aimock.url, faults) as tap, open_models([aimock.model(kind, url=tap.url)]) as model:
        assert text(await answer(model, asked("hello"))) == "the whole \u00e4nswer"


async def test_a_connection_that_is_reset_is_a_failure_like_any_other(kind, aimock):
    """Before the first piece the next model answers; after it the answer ends."""
    await aimock.says("hello", "x" * 100, latency=50, chunkSize=1)
    async with tapped(aimock.url) as tap, open_models([aimock.model(kind, url=tap.url)]) as model:
        with pytest.raises(ModelInterrupted):
            async with model.stream(asked("hello")) as pieces:
                async for piece in pieces:
                    if isinstance(piece, TextPiece):
                        for stream in tuple(tap.streams):
                            await trio.aclose_forcefully(stream)


async def test_nobody_there(kind, aimock):
    """An address at which nothing listens is not reachable, which is said in so many words."""
    async with open_models([aimock.model(kind, base_url="http://127.0.0.1:1")]) as model:
        with pytest.raises(ModelUnavailable, match="cannot be reached"):
            await answer(model, asked("hello"))
