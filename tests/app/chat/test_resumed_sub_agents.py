"""Sub-agents whose server was killed: they go on like the run that they are part of, and repeat nothing that was done."""

from collections import Counter
from copy import deepcopy

import pytest

from app.agents import Agent, AgentFailed, AgentRequest, Member, Parameters, Pipeline, Stage, Supervisor, Tool
from app.engine.model import TextPiece, ToolCall
from tests.app.chat.life import StepModel, living, read_log
from tests.app.chat.test_approvals import asked, decide

ENDS = {"agent_completed", "run_failed", "run_cancelled", "run_interrupted"}


class Item(Parameters, frozen=True):
    """What it is about."""

    item: str


class Reader(Agent):
    """Reads twice, in two steps."""

    name = "reader"
    description = "Reads."
    system = "You read."
    tools = ("look",)
    resumable = True


class Clerk(Reader):
    """Reads as well."""

    name = "clerk"


class Desk(Supervisor):
    """Leads both."""

    name = "desk"
    description = "Leads."
    members = ("reader", Member("clerk", retries=1))
    resumable = True


class Office:
    """Models by role, and tools that count how often each call was made."""

    def __init__(self, *agents, lead=None, **fields):
        self.agents = agents or (Desk, Reader, Clerk)
        self.made = Counter()
        self.asked = 0
        self.tools = [Tool("look", "Looks.", Item, self.look, **fields)]
        look = ToolCall("x", "look", {"item": "tea"})
        both = [ToolCall(name, "delegate", {"agent": name, "task": "look"}) for name in ("reader", "clerk")]
        self.roles = {"You read.": [[TextPiece("Hm. "), look], [look], [TextPiece("Seen.")]]}
        self.lead = lead or [both, [TextPiece("Seen twice.")]]

    async def look(self, context, item):
        self.made[context.call_id] += 1
        await context.database.fetch("SELECT 1")
        return f"saw {item.item}"

    def stream(self, conversation):
        self.asked += 1
        steps = self.roles.get(conversation.system, self.lead)
        return StepModel(*deepcopy(steps)).stream(conversation)

    def living(self, house, database, commits=-1):
        return living(house, database, self, tools=self.tools, agents=list(self.agents), commits=commits)


def row(house, run_id):
    """Return status, output, usage without models, and the tokens that models read."""
    status, output, usage = house.owner.execute(
        "SELECT status, output, usage FROM runs WHERE run_id = %s", (run_id,)
    ).fetchone()
    models = (usage or {}).pop("models", {})
    return status, output, usage, sum(tokens["input_tokens"] for tokens in models.values())


def kept(house):
    return house.owner.execute("SELECT count(*) FROM checkpoints").fetchone()[0]


def completed(log, tool):
    return {payload["call_id"] for payload in log.of("tool_completed") if payload["tool"] == tool}


async def test_sub_agents_killed_after_any_commit_go_on_where_they_were(house, database, user, one_by_one):
    """Same answers, same usage, each call completed once; who had ended is not started again, nor its model asked."""
    office = Office()
    thread = house.thread(user)
    async with office.living(house, database, 1000) as life:
        accepted = await life.submit(user, thread, agent="desk")
        await accepted.run.done.wait()
        commits = 1000 - life.database.commits
    expected = row(house, accepted.run_id)
    assert expected[:2] == ("completed", "Seen twice.")
    assert expected[3] == 10 * office.asked
    resumed = spared = 0
    for alive in range(2, commits - 2):
        thread, office = house.thread(user), Office()
        async with office.living(house, database, alive) as life:
            run_id = (await life.submit(user, thread, agent="desk")).run_id
            await life.runs.wait_idle()
        before, made = read_log(house, thread), Counter(office.made)
        async with office.living(house, database) as life:
            await life.runs.wait_idle()
        log = read_log(house, thread)
        *story, tokens = row(house, run_id)
        assert tuple(story) == expected[:3], alive
        assert expected[3] <= tokens <= 10 * office.asked
        ended = completed(before, "look")
        assert {call_id: office.made[call_id] for call_id in ended} == {
            call_id: made[call_id] for call_id in ended
        }
        calls = [payload["call_id"] for payload in log.of("tool_completed") if payload["tool"] == "look"]
        assert len(calls) == len(set(calls)) == 4, alive
        assert sum(each["type"] in ENDS and "_" not in each["run_id"] for each in log.events) == 1
        started = Counter(each["run_id"] for each in log.events if each["type"] == "agent_started")
        done = Counter(each["run_id"] for each in log.events if each["type"] == "agent_completed")
        assert started == done
        assert len(started) == 3
        of_children = [each for each in log.events if each["type"] == "run_resumed" and "_" in each["run_id"]]
        for each in of_children:
            text, said = "", [other for other in log.events if other["run_id"] == each["run_id"]]
            for other in said:
                if other["type"] == "message_delta":
                    assert other["payload"]["message_id"] == each["payload"]["message_id"]
                    text += other["payload"]["text"]
                elif other["type"] == "run_resumed":
                    text = other["payload"]["output"]
            assert text == "Hm. Seen."
        resumed += len(of_children)
        gone_on = {each["run_id"] for each in of_children}
        before_done = {e["run_id"] for e in before.events if e["type"] == "agent_completed"}
        assert not gone_on & before_done
        spared += len(before_done)
        assert kept(house) == 0
    assert resumed > 10
    assert spared > 2


async def test_a_sub_agents_question_outlives_the_server(house, database, user, thread):
    """It is asked once, answered under the same ids in the next server, and what was allowed is done once."""
    look = ToolCall("x", "look", {"item": "tea"})
    office = Office(
        Desk,
        Reader,
        Clerk,
        lead=[[ToolCall("1", "delegate", {"agent": "reader", "task": "look"})], [TextPiece("ok")]],
        approval=True,
    )
    office.roles["You read."] = [[look], [TextPiece("Seen.")]]
    async with office.living(house, database) as life:
        accepted = await life.submit(user, thread, agent="desk")
        (question,) = await asked(life, user, thread)
        life.database.commits = 0
    async with office.living(house, database) as life:
        await life.logged(user, thread, "run_resumed", 2)
        await decide(life, user, question, "approve", thread_id=thread)
        await life.ended()
    log = read_log(house, thread)
    assert row(house, accepted.run_id)[:2] == ("completed", "ok")
    assert log.types.count("approval_requested") == log.types.count("approval_resolved") == 1
    assert office.made == {question[1]: 1}


class Plain(Reader):
    """Begins anew."""

    name = "reader"
    resumable = False


@pytest.mark.parametrize("repeatable", [True, False])
async def test_a_plain_sub_agent_begins_anew_and_repeats_nothing_that_may_not_be(
    house, database, user, one_by_one, repeatable
):
    """Its calls are made again, under new ids; of a tool that may not be repeated the outcome is unknown."""
    lead = [[ToolCall("1", "delegate", {"agent": "reader", "task": "look"})], [TextPiece("ok")]]
    anew = unknown = 0
    for alive in range(4, 16):
        thread, office = house.thread(user), Office(Desk, Plain, Clerk, lead=lead, repeatable=repeatable)
        for commits in (alive, -1):
            async with office.living(house, database, commits) as life:
                if commits == alive:
                    run_id = (await life.submit(user, thread, agent="desk")).run_id
                await life.runs.wait_idle()
            if commits == alive:
                before = read_log(house, thread)
        assert row(house, run_id)[:2] == ("completed", "ok")
        log = read_log(house, thread)
        starts = [payload for payload in log.of("agent_started") if payload["agent"] == "reader"]
        assert len({payload["call_id"] for payload in starts}) == 1
        anew += len(starts) == 2
        errors = [payload.get("error", "") for payload in log.of("tool_completed")]
        unknown += any(error.startswith("outcome unknown") for error in errors)
        begun = any(payload["tool"] == "look" for payload in before.of("tool_executing"))
        if not repeatable and begun and len(starts) == 2:
            made_before = {p["call_id"] for p in before.of("tool_executing") if p["tool"] == "look"}
            assert set(office.made) <= made_before
        assert max(office.made.values()) == 1
    assert anew > 3
    assert bool(unknown) == (not repeatable)


async def test_the_question_of_a_plain_sub_agent_is_asked_anew(house, database, user, thread):
    """Nobody waits for the old one, so it is void; the run holds a place again, and asks under new ids."""
    office = Office(
        Desk, Plain, Clerk,
        lead=[[ToolCall("1", "delegate", {"agent": "reader", "task": "look"})], [TextPiece("ok")]],
        approval=True,
    )  # fmt: skip
    office.roles["You read."] = [[ToolCall("x", "look", {"item": "tea"})], [TextPiece("Seen.")]]
    async with office.living(house, database) as life:
        await life.submit(user, thread, agent="desk")
        (old,) = await asked(life, user, thread)
        life.database.commits = 0
    async with office.living(house, database) as life:
        await life.logged(user, thread, "approval_requested", 2)
        log = read_log(house, thread)
        assert log.of("approval_resolved") == [{"call_id": old[1], "decision": "void"}]
        (run,) = life.runs
        assert run.place.is_left
        new = log.of("approval_requested")[-1]["call_id"]
        await decide(life, user, (log.events[-1]["run_id"], new), "approve", thread_id=thread)
        await life.ended()
    assert office.made == {new: 1}


async def test_an_agent_of_ones_own_can_go_on_with_its_sub_agents(house, database, user, one_by_one):
    """By the call ids that it gives: who had answered answers the same, who had failed has failed."""
    worked = Counter()

    class Echo(Agent):
        name = "echo"
        description = "Echoes."

        async def run(self, request):
            worked[request.content] += 1
            return f"{request.content} {worked.total()}"

    class Broken(Echo):
        name = "broken"

        async def run(self, request):
            worked["broken"] += 1
            raise ValueError

    class Chief(Agent):
        name = "chief"
        description = "Delegates."
        agents = ("echo", "broken")
        resumable = True

        async def run(self, request):
            answer = await request.delegate("echo", "one", call_id="first")
            try:
                await request.delegate("broken", "two", call_id="second")
            except AgentFailed as failed:
                return f"{answer.output}, {failed.failure.code}"

    spared = 0
    for alive in range(2, 8):
        thread = house.thread(user)
        worked.clear()
        for commits in (alive, -1):
            agents = [Chief, Echo, Broken]
            async with living(house, database, None, agents=agents, commits=commits) as life:
                if commits == alive:
                    run_id = (await life.submit(user, thread, agent="chief")).run_id
                await life.runs.wait_idle()
            if commits == alive:
                ended = {p["agent"] for p in read_log(house, thread).of("agent_completed", "agent_failed")}
                before = Counter(worked)
        status, output, *_ = row(house, run_id)
        assert status == "completed"
        # What had answered, and was not in the log when the server was lost, answers anew: maybe after the broken one.
        assert output in {"one 1, internal", "one 2, internal", "one 3, internal"}
        if "echo" in ended:
            assert worked["one"] == before["one"] == 1
        if "broken" in ended:
            assert worked["broken"] == before["broken"] == 1
        spared += len(ended)
    assert spared > 3


async def test_a_stage_that_is_run_again_repeats_no_call_that_had_ended(house, database, user, one_by_one):
    """Its calls are known by the ids that it gives them."""

    async def write(request: AgentRequest, text: str) -> str:
        for number in (1, 2):
            await request.tools.call(f"look-{number}", "look", {"item": text})
        return "written"

    class Press(Pipeline):
        name = "press"
        description = "Writes."
        tools = ("look",)
        stages = (Stage(write),)
        resumable = True

    again = 0
    for alive in range(3, 10):
        thread, office = house.thread(user), Office(Press)
        for commits in (alive, -1):
            async with office.living(house, database, commits) as life:
                if commits == alive:
                    run_id = (await life.submit(user, thread, agent="press")).run_id
                await life.runs.wait_idle()
            if commits == alive:
                ended, made = completed(read_log(house, thread), "look"), Counter(office.made)
        assert row(house, run_id)[:2] == ("completed", "written")
        assert all(office.made[call_id] == made[call_id] for call_id in ended)
        again += bool(ended) and read_log(house, thread).types.count("agent_started") == 3
    assert again


async def test_states_of_sub_agents_count_towards_the_runs(house, database, user, thread, monkeypatch):
    """A run keeps no more because several agents keep it."""
    monkeypatch.setattr("app.chat.ledger.STATE_BYTES", 3500)
    office = Office()
    office.roles["You read."][0][0] = TextPiece("x" * 1000)
    async with office.living(house, database) as life:
        accepted = await life.submit(user, thread, agent="desk")
        await accepted.run.done.wait()
    assert any(p["code"] == "state_too_large" for p in read_log(house, thread).of("agent_failed"))
    assert kept(house) == 0
