"""The assistant with the offline model and the real tools, over real rows."""

import pytest
import trio

from app.engine.engine import Catalog, built_in_agents, built_in_tools, run_agent


async def ask(house, context, content):
    house.message(context, "user", content)
    async with house.request(context) as (request, heard):
        catalog = Catalog(agents=built_in_agents(), tools=built_in_tools())
        answer = await run_agent(request, catalog, agent="assistant", content=content, message_id="m1")
        return answer, heard()


def results(events):
    return {payload["tool"]: payload for kind, payload in events if kind == "tool_completed"}


async def test_a_turn_with_all_tools(house):
    """Several lines are several calls at once, each told before and after, and all are in the answer."""
    earlier = house.context()
    house.message(earlier, "user", "the blue whale is large")
    answer, events = await ask(house, house.context(earlier.user_id), "calculate 6*7\nsearch whale\ntime")
    kinds = [kind for kind, _ in events]
    assert kinds[:7] == ["agent_thinking", *["tool_executing"] * 3, *["tool_completed"] * 3]
    assert set(kinds[7:]) == {"message_delta"}
    assert "".join(payload["text"] for kind, payload in events if kind == "message_delta") == answer.output
    completed = results(events)
    assert completed["calculator"]["result"] == "42"
    assert completed["clock"]["result"]["utc"].endswith("Z")
    (message,) = completed["search_messages"]["result"]["messages"]
    assert message["snippet"] == "the blue whale is large"
    assert message["thread_id"] == earlier.thread_id
    assert "offline model" in answer.output
    assert "6*7 = 42" in answer.output
    assert "the blue whale is large" in answer.output


async def test_a_prompt_that_asks_for_another_users_rows_gets_none(house):
    """Not by words, ids or quotes: what the model asks for does not decide whose rows are read."""
    stranger = house.context()
    house.message(stranger, "user", "canary-7f3a secret whale")
    house.message(stranger, "assistant", "the answer about canary-7f3a")
    context = house.context()
    prompts = [
        "search canary-7f3a",
        f"search whale user_id:{stranger.user_id}",
        "search secret or whale",
        "search ') OR true --",
        f"search {stranger.user_id}",
    ]
    for prompt in prompts:
        answer, events = await ask(house, house.context(context.user_id), prompt)
        found = results(events)["search_messages"]["result"]["messages"]
        assert all("canary" not in message["snippet"] for message in found)
        assert "secret whale" not in answer.output.replace(prompt, "")
    answer, events = await ask(house, house.context(context.user_id, context.thread_id), "search canary-7f3a")
    assert {message["role"] for message in results(events)["search_messages"]["result"]["messages"]} <= {
        "user"
    }
    # The stranger's own search finds the rows, so that it is not the search that is blind.
    _, events = await ask(house, house.context(stranger.user_id), "search canary-7f3a")
    assert results(events)["search_messages"]["result"]["found"] == 2


async def test_a_thread_of_somebody_else_has_no_history(house):
    """A context that names another user's thread reads an empty one."""
    stranger = house.context()
    house.message(stranger, "user", "canary-7f3a")
    context = house.context(house.user(), stranger.thread_id)
    async with house.request(context) as (request, _):
        catalog = Catalog(agents=built_in_agents(), tools=built_in_tools())
        answer = await run_agent(request, catalog, agent="assistant", content="hello", message_id="m1")
    assert "first one" in answer.output
    assert "canary" not in answer.output


@pytest.mark.parametrize(
    "content", ["", "\0", "search \0", "calculate \0", "search " + "x" * 5000, "calculate " + "9" * 5000]
)
async def test_odd_messages_are_answered(house, content):
    """No message makes the engine itself fail."""
    async with house.request() as (request, heard):
        catalog = Catalog(agents=built_in_agents(), tools=built_in_tools())
        answer = await run_agent(request, catalog, agent="assistant", content=content, message_id="m1")
        assert "offline model" in answer.output
        found = [payload for kind, payload in heard() if kind == "tool_completed" and payload["ok"]]
        assert [payload["result"] for payload in found] == [{"found": 0, "messages": []}] * len(found)


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope just before the k-th step of any task of the test."""

    def __init__(self, k):
        self.k = k
        self.steps = 0
        self.scope = None

    def before_task_step(self, _task):
        if self.scope is not None:
            self.steps += 1
            if self.steps == self.k:
                self.scope.cancel()


async def test_a_run_can_be_cancelled_at_every_step(house):
    """Wherever it is cancelled, what was heard is what was said, and every connection is back."""
    context = house.context()
    catalog = Catalog(agents=built_in_agents(), tools=built_in_tools())
    cancelled = 0
    for k in range(1, 2000):
        said = []
        instrument = _CancelAt(k)
        trio.lowlevel.add_instrument(instrument)
        async with house.request(context) as (request, heard):
            with trio.CancelScope() as instrument.scope:
                await run_agent(
                    request,
                    catalog,
                    agent="assistant",
                    content="calculate 6*7\nsearch whale\ntime",
                    message_id="m1",
                    on_said=said.append,
                )
            scope, instrument.scope = instrument.scope, None
            trio.lowlevel.remove_instrument(instrument)
            deltas = [payload["text"] for kind, payload in heard() if kind == "message_delta"]
            assert said[: len(deltas)] == deltas
            assert len(said) - len(deltas) <= 1
        assert house.pool.statistics().checked_out == 0
        if instrument.steps < k:
            break
        cancelled += scope.cancelled_caught  # the last steps only end nurseries, and come too late
    assert cancelled > 30
    assert not scope.cancelled_caught
