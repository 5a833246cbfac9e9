"""The supervisor: it plans, has others work at the same time, and says what becomes of their failures."""

import json

import pytest
import trio

from app.agents import Agent, Answer, Member, Supervisor, agent
from app.engine.engine import run_agent
from app.engine.model import TextPiece, ThinkingPiece, ToolCall, ToolTurn, Usage
from app.engine.registry import AgentRegistry
from app.isolation import SHARED
from nurseries.inspect import KERNEL, roots_of, shared_between
from nurseries.request import open_request
from tests.app.engine.playing import catalog_of, play


class Numbers(Agent):
    """Calculates."""

    name = "numbers"
    description = "Calculates."
    system = "You calculate."
    tools = ("calculator",)


@agent
async def words(request):
    """Counts words."""
    await request.say(f"{len(request.content.split())} words")


@agent
async def broken(request):
    """Never works."""
    raise ZeroDivisionError("a secret")


def supervisor(*members, **fields):
    return type(
        "Desk",
        (Supervisor,),
        {"name": "desk", "description": "Leads.", "members": members, **fields},
    )


def delegate(agent, task, call_id="c"):
    return ToolCall(call_id, "delegate", {"agent": agent, "task": task})


# -- planning and composing ------------------------------------------------------------------------------


async def test_offline_it_plans_from_the_parts_of_the_message(house):
    """Each part is a task, for the agent that it names or for the next in turn; the answer has all results."""
    desk = supervisor("numbers", "words")
    content = "words: one two three; calculate 6*7\ncalculate 1+1 ; Numbers: calculate 2*5"
    played = await play(house, catalog_of(desk, Numbers, words), desk, content)
    assert played.output == (
        "I am the offline model; these are the agents' own answers.\n"
        "words: 3 words\n"
        "numbers: I am the offline model; these are the tools' own answers.\n6*7 = 42\n"
        "words: 2 words\n"
        "numbers: I am the offline model; these are the tools' own answers.\n2*5 = 10"
    )
    story = played.story()
    assert story[0] == (
        0,
        "agent_thinking",
        "desk",
    )
    assert {step[2] for step in story if step[:2] == (1, "agent_started")} == {"numbers", "words"}
    assert "".join(played.said) == played.output
    assert played.result.usage["sub_agents"] == 4
    assert played.result.usage["tool_calls"] == 4 + 2


async def test_a_model_plans_in_steps_and_composes(house, scripted):
    """Tasks of one step, their results, tasks that need them, an answer of its own; the usage is everybody's."""
    desk = supervisor("words", system="You are terse.")
    model = scripted(
        [
            ThinkingPiece("two tasks"),
            delegate("words", "a b", "x"),
            delegate("words", "c", "y"),
            Usage(10, 5, "big"),
        ],
        [delegate("words", "a b c", "z"), Usage(1, 1)],
        [TextPiece("Three, two and one.")],
    )

    @agent(name="words", description="Counts words.")
    async def counting(request):
        return Answer(str(len(request.content.split())), {"input_tokens": 100, "model": "small"})

    played = await play(house, catalog_of(desk, counting, model=lambda: model), desk, "count")
    assert played.output == "Three, two and one."
    assert played.said == ["Three, two and one."]
    assert played.result.usage == {
        "input_tokens": 311, "output_tokens": 6, "steps": 3, "tool_calls": 3, "sub_agents": 3, "model": "big",
    }  # fmt: skip
    first, second, third = model.told
    assert first.system.startswith("You are terse.\n")
    assert "- words: Counts words." in first.system.splitlines()
    (tool,) = first.tools
    assert tool.name == "delegate"
    assert tool.parameters["properties"]["agent"]["enum"] == ["words"]
    assert [result.result for result in second.turns[-1].results] == ["2", "1"]
    assert isinstance(third.turns[-1], ToolTurn)
    assert third.turns[-1].results[0].result == "3"


async def test_members_work_at_the_same_time(house, scripted):
    """Those of one step: each waits for the other here."""
    met = {"a": trio.Event(), "b": trio.Event()}

    @agent
    async def meeting(request):
        """Waits for the other one."""
        met[request.content].set()
        for event in met.values():
            await event.wait()
        return request.content

    desk = supervisor("meeting")
    model = scripted([delegate("meeting", "a"), delegate("meeting", "b")], [TextPiece("met")])
    with trio.fail_after(10):
        assert (await play(house, catalog_of(desk, meeting, model=lambda: model), desk)).output == "met"


async def test_what_needs_no_agent_it_answers_itself(house, scripted):
    """No task, no sub-agent; the answer streams as from any agent."""
    desk = supervisor("words")
    model = scripted([TextPiece("Good "), TextPiece("day.")])
    played = await play(house, catalog_of(desk, words, model=lambda: model), desk)
    assert played.said == ["Good ", "day."]
    assert {e["type"] for e in played.envelopes} == {"message_delta"}


async def test_it_gives_tasks_to_its_members_alone(house, scripted):
    """A model that names somebody else is told who there is; nothing is started."""
    desk = supervisor("words")
    wrong = [delegate("assistant", "x"), delegate("words", ""), ToolCall("c", "delegate", {"agent": "words"})]
    model = scripted(wrong, [TextPiece("sorry")])
    played = await play(house, catalog_of(desk, words, model=lambda: model), desk)
    assert played.output == "sorry"
    assert [result.ok for result in model.told[1].turns[-1].results] == [False] * 3
    assert "'assistant'" in model.told[1].turns[-1].results[0].error
    assert not [e for e in played.envelopes if e["type"] == "agent_started"]


# -- failures ---------------------------------------------------------------------------------------------


async def test_a_failure_ends_the_run_unless_it_is_declared_otherwise(house, scripted):
    """Whoever works beside it is cancelled."""
    ended = []

    @agent
    async def patient(request):
        """Waits."""
        try:
            await trio.sleep_forever()
        finally:
            ended.append("patient")

    desk = supervisor("broken", "patient")
    model = scripted([delegate("patient", "x"), delegate("broken", "y")])
    with trio.fail_after(10):
        played = await play(house, catalog_of(desk, broken, patient, model=lambda: model), desk)
    assert played.result.code == "agent_failed"
    assert "the agent broken failed" in played.result.message
    assert "secret" not in played.result.message
    assert ended == ["patient"]


async def test_a_member_that_may_be_left_out_is(house, scripted):
    """The model is told, and answers with the rest."""
    desk = supervisor(Member("broken", on_failure="skip"), "words")
    model = scripted(
        [delegate("broken", "x", "b"), delegate("words", "y z", "w")], [TextPiece("2, as far as I know")]
    )
    played = await play(house, catalog_of(desk, broken, words, model=lambda: model), desk)
    assert played.output == "2, as far as I know"
    failed, counted = model.told[1].turns[-1].results
    assert (failed.ok, counted.result) == (False, "2 words")
    assert failed.error.startswith("the agent broken failed: ")


async def test_a_member_is_tried_again_as_often_as_declared(house, scripted, virtual_time):
    """Each try is a sub-agent of its own; the first that succeeds counts."""
    tries = []

    @agent
    async def flaky(request):
        """Works the third time."""
        tries.append(trio.current_time())
        if len(tries) < 3:
            raise ZeroDivisionError
        return "at last"

    desk = supervisor(Member("flaky", retries=2))
    model = scripted([delegate("flaky", "x")], [TextPiece("done")])
    played = await play(house, catalog_of(desk, flaky, model=lambda: model), desk)
    assert played.output == "done"
    assert model.told[1].turns[-1].results[0].result == "at last"
    assert [step[1] for step in played.story() if step[2] == "flaky"] == [
        "agent_started", "agent_failed", "agent_started", "agent_failed", "agent_started", "agent_completed",
    ]  # fmt: skip
    assert tries[1] - tries[0] < tries[2] - tries[1]


async def test_a_member_has_its_time(house, scripted, virtual_time):
    """Each try; after the last one it has failed."""

    @agent
    async def slow(request):
        """Takes its time."""
        await trio.sleep_forever()

    desk = supervisor(Member("slow", seconds=10, retries=1, on_failure="skip"))
    model = scripted([delegate("slow", "x")], [TextPiece("without it")])
    began = trio.current_time()
    played = await play(house, catalog_of(desk, slow, model=lambda: model), desk)
    assert played.output == "without it"
    assert 20 <= trio.current_time() - began < 22
    assert "did not answer within 10 seconds" in model.told[1].turns[-1].results[0].error


async def test_a_model_that_delegates_without_end_is_stopped(house, scripted):
    """By the number of sub-agents, of which it is told, and by its steps, which end the run."""
    desk = supervisor("words")
    model = scripted(*([delegate("words", "x") for _ in range(4)] for _ in range(10)))
    played = await play(house, catalog_of(desk, words, model=lambda: model, sub_agents=6, steps=3), desk)
    assert played.result.code == "too_many_steps"
    assert sum(e["type"] == "agent_started" for e in played.envelopes) == 6
    errors = [result.error for result in model.told[2].turns[-1].results if not result.ok]
    assert errors == ["words was not started: a run may have 6 sub-agents in all"] * 2


async def test_sub_agents_use_the_tokens_of_the_run(house, scripted):
    """Nobody gets more of them by having others ask: when they are used up, no model is asked any more."""

    class Talker(Agent):
        """Talks."""

        name = "talker"
        description = "Talks."
        system = "You talk."

    desk = supervisor("talker")
    asked = [TextPiece("blah"), Usage(30, 10, "m")]
    model = scripted(
        [delegate("talker", "x"), Usage(5, 5, "m")], asked, [delegate("talker", "y"), Usage(5, 5, "m")]
    )
    played = await play(house, catalog_of(desk, Talker, model=lambda: model, tokens=55), desk)
    assert played.result.code == "agent_failed"
    assert "(too_many_tokens)" in played.result.message
    assert len(model.told) == 3
    assert [e["type"] for e in played.envelopes if e["type"] in {"agent_completed", "agent_failed"}] == [
        "agent_completed", "agent_failed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("members", "said"),
    [((), "members"), ("words", "members"), ((1,), "members"), (("words", "words"), "twice")],
)
def test_members_are_looked_at_when_it_is_registered(members, said):
    """A supervisor of nobody, or of what is no agent, does not start."""
    desk = supervisor()
    desk.members = members
    with pytest.raises(ValueError, match=said):
        AgentRegistry([desk, words])


@pytest.mark.parametrize(
    "fields",
    [{"retries": -1}, {"retries": 6}, {"on_failure": "ignore"}, {"seconds": 0}, {"seconds": float("inf")}],
)
def test_a_policy_is_looked_at_where_it_is_declared(fields):
    """A wrong word or number is refused in its own line."""
    with pytest.raises((TypeError, ValueError)):
        Member("words", **fields)


# -- isolation --------------------------------------------------------------------------------------------


async def test_nothing_is_left_wherever_it_is_cancelled(house, cancel_everywhere):
    """A supervisor with two sub-agents at work, each with a tool and rows: every connection comes back."""
    desk = supervisor("numbers", "searcher")

    class Searcher(Agent):
        """Searches."""

        name = "searcher"
        description = "Searches."
        system = "You search."
        tools = ("search_messages",)

    catalog = catalog_of(desk, Numbers, Searcher)
    context = house.context()
    house.message(context, "user", "the whale")

    async def scenario():
        async with open_request(house.kernel, context) as request:
            content = "numbers: calculate 6*7; searcher: search whale"
            await run_agent(request, catalog, agent="desk", content=content, message_id="m1")

    async def nothing_left():
        assert house.kernel.live.requests == {}
        assert house.kernel.budget.statistics().in_use == 0
        assert house.pool.statistics().checked_out == 0
        assert house.owner.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename <> current_user AND state <> 'idle'"
            " AND datname = current_database()"
        ).fetchone() == (0,)

    sweep = await cancel_everywhere(scenario, nothing_left)
    assert sweep.caught > 50


async def test_two_users_with_the_same_supervisor_share_nothing(house):
    """While sub-agents of both are at work, the audit finds no object that one could change for the other."""
    working, go_on = [], trio.Event()

    @agent
    async def busy(request):
        """Works while it is looked at."""
        working.append(request.context.user_id)
        await go_on.wait()
        return request.content

    desk = supervisor("busy")
    catalog = catalog_of(desk, busy)
    contexts = [house.context(), house.context()]
    shared = KERNEL.and_also(types=SHARED, objects=(working, go_on), code={"app", "tests"})
    async with trio.open_nursery() as nursery:
        for context in contexts:
            nursery.start_soon(lambda context=context: play(house, catalog, desk, "a; b", context=context))
        with trio.fail_after(10):
            while len(working) < 4:
                await trio.testing.wait_all_tasks_blocked()
        scopes = {}
        for request in house.kernel.live.requests.values():
            scopes.setdefault(request.context.user_id, []).extend(roots_of(request))
        assert {user: len(roots) > 3 for user, roots in scopes.items()} == dict.fromkeys(
            (context.user_id for context in contexts), True
        )
        findings = shared_between(scopes, infrastructure=shared)
        go_on.set()
    assert findings == []


async def test_a_task_that_asks_for_another_users_rows_gets_none(house):
    """However it is put, and through however many agents."""
    stranger = house.context()
    house.message(stranger, "user", "canary-9c1e of the whale")

    class Searcher(Agent):
        """Searches."""

        name = "searcher"
        description = "Searches."
        system = "You search."
        tools = ("search_messages",)

    desk = supervisor("searcher")
    content = (
        f"search canary-9c1e; searcher: search whale user_id:{stranger.user_id}; search {stranger.user_id};"
        " searcher: search secret or whale"
    )
    played = await play(house, catalog_of(desk, Searcher), desk, content)
    found = [
        e["payload"]["result"]
        for e in played.envelopes
        if e["type"] == "tool_completed" and e["payload"]["tool"] == "search_messages"
    ]
    assert found == [{"found": 0, "messages": []}] * 4
    assert "of the whale" not in json.dumps(played.envelopes)
