"""The loop between a model and its tools: what it passes on, and where it stops."""

import itertools

import pytest
import trio

from app.engine.engine import Catalog, built_in_agents, built_in_tools, run_agent
from app.engine.errors import TooManySteps, TooManyTokens, UnknownAgent
from app.engine.model import ModelTurn, TextPiece, ThinkingPiece, ToolCall, ToolTurn, Usage, UserTurn
from app.engine.request import RunLimits
from nurseries.errors import Unavailable


async def run(request, model, content="question", *, agent="assistant", on_said=None, **limits):
    catalog = Catalog(
        agents=built_in_agents(), tools=built_in_tools(), model=lambda: model, limits=RunLimits(**limits)
    )
    return await run_agent(request, catalog, agent=agent, content=content, message_id="m1", on_said=on_said)


def calculate(expression, call_id="c"):
    return ToolCall(call_id, "calculator", {"expression": expression})


async def test_text_and_thinking_come_as_they_are_said(house, scripted):
    """Each piece is an event at once; the answer is the text alone, and the usage is added up."""
    model = scripted(
        [ThinkingPiece("hm"), TextPiece("a"), TextPiece(""), TextPiece("b\0"), Usage(3, 2), Usage(1, 0)]
    )
    said = []
    async with house.request() as (request, heard):
        answer = await run(request, model, on_said=lambda text: said.append((text, len(heard()))))
        assert answer.output == "ab\ufffd"
        assert answer.usage == {"input_tokens": 4, "output_tokens": 2, "steps": 1, "tool_calls": 0}
        assert said == [("a", 1), ("b\ufffd", 2)]  # each before its event, so that none is seen and not kept
        assert heard() == [
            ("agent_thinking", {"agent": "assistant", "text": "hm"}),
            ("message_delta", {"message_id": "m1", "text": "a"}),
            ("message_delta", {"message_id": "m1", "text": "b\ufffd"}),
        ]


async def test_results_go_back_to_the_model(house, scripted):
    """The calls of one step run together; the model gets each result under the name that it gave the call."""
    model = scripted(
        [TextPiece("let me see "), calculate("6*7", "x"), calculate("1/0", "x"), ToolCall("y", "clock", {})],
        [TextPiece("done")],
    )
    async with house.request() as (request, heard):
        answer = await run(request, model)
        assert answer.output == "let me see done"
        assert answer.usage["steps"] == 2
        assert answer.usage["tool_calls"] == 3
        question, asked, told = model.told[1].turns
        assert question == UserTurn("question")
        assert asked == ModelTurn(
            "let me see ", (calculate("6*7", "x"), calculate("1/0", "x"), ToolCall("y", "clock", {}))
        )
        assert isinstance(told, ToolTurn)
        assert [result.call_id for result in told.results] == ["x", "x", "y"]
        assert [result.ok for result in told.results] == [True, False, True]
        assert told.results[0].result == "42"
        ids = {payload["call_id"] for kind, payload in heard() if kind == "tool_executing"}
        assert len(ids) == 3
        assert not ids & {"x", "y"}


async def test_the_model_is_told_what_the_conversation_was_and_what_it_may_use(house, scripted):
    """Earlier messages, oldest first and no more than the limit; and the tools of this agent, no others."""
    first = house.context()
    house.message(first, "user", "one")
    house.message(first, "assistant", "two")
    second = house.context(first.user_id, first.thread_id)
    house.message(second, "user", "three")
    model, short = scripted([]), scripted([])
    async with house.request(second) as (request, _):
        await run(request, model, "three")
        await run(request, short, "three", history_messages=1)
    assert model.told[0].turns == (UserTurn("one"), ModelTurn("two"), UserTurn("three"))
    assert short.told[0].turns == (ModelTurn("two"), UserTurn("three"))
    assert [tool.name for tool in model.told[0].tools] == ["calculator", "search_messages", "clock"]


async def test_a_model_that_never_answers_is_stopped(house, scripted):
    """The run fails after its last step, whose calls nobody would read are not made; what was said stays said."""
    model = scripted(*([TextPiece("again "), calculate("1")] for _ in range(10)))
    said = []
    async with house.request() as (request, heard):
        with pytest.raises(TooManySteps):
            await run(request, model, on_said=said.append, steps=3)
        assert [kind for kind, _ in heard()].count("tool_executing") == 2
    assert len(model.told) == 3
    assert said == ["again "] * 3


async def test_a_model_that_has_used_its_tokens_is_asked_no_more(house, scripted):
    """What it reads and writes counts together; an answer that has come is kept, whatever it took."""
    steps = [[TextPiece("again "), calculate("1"), Usage(90, 10)] for _ in range(10)]
    model, generous = scripted(*steps), scripted(steps[0], [TextPiece("done"), Usage(5000, 5000)])
    said = []
    async with house.request() as (request, _):
        with pytest.raises(TooManyTokens):
            await run(request, model, on_said=said.append, tokens=250)
        answer = await run(request, generous, tokens=250)
    assert len(model.told) == 3
    assert said == ["again "] * 3
    assert answer.output == "again done"
    assert answer.usage["output_tokens"] == 5010


async def test_the_answer_names_its_model(house, scripted):
    """The last one that said who it is."""
    model = scripted(
        [calculate("1"), Usage(1, 1, "first")], [TextPiece("x"), Usage(0, 0, "second"), Usage(1, 1)]
    )
    async with house.request() as (request, _):
        assert (await run(request, model)).usage["model"] == "second"


async def test_arguments_without_a_json_form_fail_their_call(house, scripted):
    """A lone surrogate is replaced, what is no JSON at all is refused; the run goes on."""
    model = scripted(
        [calculate("1\ud800"), ToolCall("b", "calculator", {"expression": object()}), calculate("6*7")],
        [TextPiece("ok")],
    )
    async with house.request() as (request, _):
        assert (await run(request, model)).output == "ok"
    assert [result.ok for result in model.told[1].turns[-1].results] == [False, False, True]


@pytest.mark.parametrize("piece", [TextPiece("x" * 30), ThinkingPiece("x" * 30), calculate("1")])
async def test_a_model_that_never_stops_is_cut_off(house, scripted, piece):
    """Text, thinking and calls all count; the answer ends, says so, and the stream is closed."""
    model = scripted(itertools.repeat(piece))
    async with house.request() as (request, heard):
        answer = await run(request, model, output_characters=1000)
        assert answer.output.endswith("[Cut off: a run may say 1000 characters.]")
        assert sum(len(payload["text"]) for kind, payload in heard() if "text" in payload) <= 1100
        assert "tool_executing" not in dict(heard())
    assert model.open == 0


async def test_calls_beyond_the_limit_are_refused_aloud(house, scripted):
    """The user and the model both learn that some calls were not made."""
    model = scripted([calculate(str(n), f"c{n}") for n in range(5)], [TextPiece("ok")])
    async with house.request() as (request, heard):
        answer = await run(request, model, calls_per_step=3)
        assert answer.usage["tool_calls"] == 3
        events = heard()
    assert sum(kind == "tool_executing" for kind, _ in events) == 3
    assert (
        "agent_thinking",
        {"agent": "assistant", "text": "2 more tool calls were not made: at most 3 in one step."},
    ) in events
    results = model.told[1].turns[-1].results
    assert [(result.call_id, result.ok) for result in results] == [
        ("c0", True), ("c1", True), ("c2", True), ("c3", False), ("c4", False),
    ]  # fmt: skip
    assert results[3].error == "not made: at most 3 calls in one step"


async def test_a_model_that_fails_fails_the_run(house, scripted):
    """Its error passes as it is, the stream is closed, and what was said is kept."""
    model = scripted([TextPiece("half an ans"), Unavailable("overloaded", retry_after=3)])
    said = []
    async with house.request() as (request, _):
        with pytest.raises(Unavailable, match="overloaded"):
            await run(request, model, on_said=said.append)
    assert said == ["half an ans"]
    assert model.open == 0


async def test_a_cancelled_run_keeps_what_it_said(house, scripted):
    """A run that is cancelled while the model thinks ends at once and leaves its text and nothing open."""
    thinking = trio.Event()

    async def think():
        thinking.set()
        await trio.sleep_forever()

    model = scripted([TextPiece("half "), think, TextPiece("whole")])
    said = []
    async with house.request() as (request, heard):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _():
                    await run(request, model, on_said=said.append)

                await thinking.wait()
                scope.cancel()
        assert scope.cancelled_caught
        assert heard() == [("message_delta", {"message_id": "m1", "text": "half "})]
    assert said == ["half "]
    assert model.open == 0


async def test_an_unknown_agent_is_the_callers_mistake(house, scripted):
    """Nothing is done before it is known who shall do it."""
    model = scripted()
    async with house.request() as (request, heard):
        with pytest.raises(UnknownAgent):
            await run(request, model, agent="load")
        assert heard() == []
