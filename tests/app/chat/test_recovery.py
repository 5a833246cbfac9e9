"""Runs whose server was killed, at every moment: they go on with no call made twice, or end so that it is known."""

from collections import Counter

import msgspec
import trio

import app.chat.journal
import app.chat.ledger
from app.chat.recovery import interrupt_orphans
from app.chat.settings import RunSettings
from app.engine.agent import Agent
from app.engine.model import ToolCall
from app.engine.request import RunLimits
from app.tools.schema import Parameters, Tool
from tests.app.chat.life import StepModel, living, read_log, text, worker

ENDS = {"agent_completed", "run_failed", "run_cancelled", "run_interrupted"}


class Number(Parameters, frozen=True):
    """One number."""

    number: int


class Doubler:
    """A tool that counts how often each call of it was made."""

    def __init__(self, **fields):
        self.made = Counter()
        self.tool = Tool("double", "Doubles.", Number, self.double, **fields)

    async def double(self, context, parameters):
        self.made[context.call_id] += 1
        if parameters.number == 13:
            raise ValueError
        await context.database.fetch("SELECT 1")
        return 2 * parameters.number


def double(number, name="x"):
    return ToolCall(name, "double", {"number": number})


def model():
    return StepModel(
        [*text("First ", "this. "), double(1, "a"), double(2, "b")],
        [*text("Then ", "that. "), double(3), double(13), ToolCall("x", "nonsense", {})],
        text("It ", "is ", "done."),
    )


def row(house, run_id):
    return house.owner.execute(
        "SELECT status, output, usage FROM runs WHERE run_id = %s", (run_id,)
    ).fetchone()


def said(house, thread):
    return house.owner.execute(
        "SELECT content, partial FROM messages WHERE thread_id = %s AND role = 'assistant'", (thread,)
    ).fetchall()


def kept(house):
    return house.owner.execute("SELECT count(*) FROM checkpoints").fetchone()[0]


async def undisturbed(house, database, user):
    """Return how the run comes out if nobody kills it, and how many commits that takes."""
    thread = house.thread(user)
    async with living(house, database, model(), tools=[Doubler().tool], commits=1000) as life:
        accepted = await life.submit(user, thread)
        await accepted.run.done.wait()
        commits = 1000 - life.database.commits
    log = read_log(house, thread)
    assert log.types.count("tool_completed") == 5
    return row(house, accepted.run_id), commits


async def test_a_run_killed_after_any_commit_comes_out_as_if_nothing_had_happened(
    house, database, user, one_by_one
):
    """Same answer, same usage, each call completed once, and one that had ended is never made again."""
    expected, commits = await undisturbed(house, database, user)
    assert commits > 20
    for alive in range(commits):
        thread, doubler = house.thread(user), Doubler()
        async with living(house, database, model(), tools=[doubler.tool], commits=alive) as life:
            accepted = await life.submit(user, thread)
            await life.runs.wait_idle()
        before = read_log(house, thread)
        if before.types[-1:] == [
            "agent_completed"
        ]:  # the first and the last event wait for no batch of their own
            assert alive >= commits - 2
            continue
        ended = {payload["call_id"] for payload in before.of("tool_completed")}
        made = Counter(doubler.made)

        async with living(house, database, model(), tools=[doubler.tool]) as life:
            assert (life.recovered.taken_up, life.recovered.interrupted) == (1, 0)
            await life.runs.wait_idle()
        log = read_log(house, thread)
        assert row(house, accepted.run_id) == expected, alive
        assert said(house, thread) == [(expected[1], False)]
        assert log.shown() == expected[1]
        assert log.types[-1] == "agent_completed"
        assert sum(kind in ENDS for kind in log.types) == 1
        assert log.types.count("run_queued") == log.types.count("agent_started") == 1
        assert log.types.count("run_resumed") == ("agent_started" in before.types)
        completed = [payload["call_id"] for payload in log.of("tool_completed")]
        assert len(completed) == len(set(completed)) == 5
        assert {call_id: doubler.made[call_id] for call_id in ended} == {
            call_id: made[call_id] for call_id in ended
        }
        assert kept(house) == 0


async def test_a_run_killed_again_and_again_gets_on(house, database, user, thread, one_by_one):
    """Every life adds a little; none repeats a call that had ended, and the answer is as it would have been."""
    expected, _ = await undisturbed(house, database, user)
    doubler, lives, bounds = Doubler(), 0, RunSettings(resumes=100)
    run_id = None
    while run_id is None or row(house, run_id)[0] in {"queued", "running"}:
        # Enough for what is said again and one new step: with less, a life could not get further than the last.
        async with living(
            house, database, model(), tools=[doubler.tool], bounds=bounds, commits=8 + lives % 3
        ) as life:
            if run_id is None:
                run_id = (await life.submit(user, thread)).run_id
            await life.runs.wait_idle()
        lives += 1
        assert lives < 20
    assert lives > 2
    log = read_log(house, thread)
    assert row(house, run_id) == expected
    assert log.shown() == expected[1]
    completed = [payload["call_id"] for payload in log.of("tool_completed")]
    assert len(completed) == len(set(completed)) == 5
    assert [payload["step"] for payload in log.of("run_resumed")] == sorted(
        payload["step"] for payload in log.of("run_resumed")
    )


async def test_a_call_that_may_not_be_repeated_is_never_made_twice(house, database, user, one_by_one):
    """Cut off in the middle, its outcome is unknown: the model is told so, and the run goes on."""
    _, commits = await undisturbed(house, database, user)
    unknown = 0
    for alive in range(commits):
        thread, doubler = house.thread(user), Doubler(repeatable=False)
        for mortal in (alive, -1):
            async with living(house, database, model(), tools=[doubler.tool], commits=mortal) as life:
                if mortal == alive:
                    run_id = (await life.submit(user, thread)).run_id
                await life.runs.wait_idle()
        assert row(house, run_id)[0] == "completed"
        assert max(doubler.made.values()) == 1
        errors = [payload.get("error", "") for payload in read_log(house, thread).of("tool_completed")]
        assert len(errors) == 5
        unknown += any(error.startswith("outcome unknown") for error in errors)
    assert unknown


async def test_a_call_is_made_only_when_its_step_would_survive(house, database, user, thread):
    """When the tool runs, the checkpoint that names its call is in the database: a lost call keeps its id."""
    named = []

    async def look(context, _parameters):
        rows = await context.database.fetch("SELECT state FROM checkpoints")
        named.append([context.call_id in row[0].decode() for row in rows])

    tools = [Tool("look", "Looks.", Number, look)]
    calls = [ToolCall("x", "look", {"number": number}) for number in range(3)]
    async with living(house, database, StepModel(calls, calls, text("done")), tools=tools) as life:
        await (await life.submit(user, thread)).run.done.wait()
    assert named == [[True]] * 6


async def test_what_is_not_resumable_ends_as_interrupted(house, database, user):
    """A plain agent's run, and one whose socket is gone; a queued run of the same agent just runs."""
    threads = [house.thread(user) for _ in range(3)]
    agents = [worker(resumable=False), worker(name="sturdy")]
    async with living(house, database, StepModel([trio.sleep_forever]), agents=agents) as life:
        runs = [
            await life.submit(user, threads[0]),
            await life.submit(user, threads[1], agent="sturdy", on_disconnect="cancel"),
        ]
        for thread in threads[:2]:
            await life.logged(user, thread, "agent_started")
        life.database.commits = 0
        queued = await life.submit(user, threads[0], "next")
    async with living(house, database, StepModel(text("fine")), agents=agents) as life:
        assert (life.recovered.taken_up, life.recovered.interrupted) == (1, 2)
        await life.runs.wait_idle()
    for run, thread in zip(runs, threads, strict=False):
        assert row(house, run.run_id)[0] == "interrupted"
        (reason,) = read_log(house, thread).of("run_interrupted")
        assert reason == {"reason": "the server was lost while it ran"}
    assert row(house, queued.run_id)[:2] == ("completed", "fine")
    assert read_log(house, threads[0]).of("run_queued")[-1]["content"] == "next"


async def test_a_thread_goes_on_in_its_order(house, database, user, thread, one_by_one):
    """The run that was active, what was to go before the others, the others; and a run that was to be replaced is not run."""
    async with living(house, database, StepModel([trio.sleep_forever])) as life:
        active = await life.submit(user, thread, "active")
        await life.logged(user, thread, "agent_started")
        life.database.commits = 0  # nothing of what follows gets into the log, but all of it is accepted
        second = await life.submit(user, thread, "second")
        third = await life.submit(user, thread, "third")
        urgent = await life.submit(user, thread, "urgent", on_conflict="rollback")
    async with living(house, database, StepModel(text("fine"))) as life:
        await life.runs.wait_idle()
    log = read_log(house, thread)
    assert log.of("run_interrupted") == [{"reason": "the server was lost while it ran"}]
    ends = [event["run_id"] for event in log.events if event["type"] in ENDS]
    assert ends == [run.run_id for run in (active, urgent, second, third)]
    asked = house.owner.execute(
        "SELECT content FROM messages WHERE role = 'user' ORDER BY position"
    ).fetchall()
    assert asked == [("second",), ("third",), ("urgent",)]


async def test_a_key_stands_for_its_run_in_every_life(house, database, user, thread, one_by_one):
    """A repeat after the restart starts nothing, and can wait for the run that goes on."""
    async with living(house, database, model(), tools=[Doubler().tool], commits=9) as life:
        first = await life.submit(user, thread, key="k", client_id="k")
        await life.runs.wait_idle()
    async with living(house, database, model(), tools=[Doubler().tool]) as life:
        again = await life.submit(user, thread, key="k", client_id="k")
        assert again.duplicate
        assert again.run_id == first.run_id
        await again.run.done.wait()
    assert read_log(house, thread).types.count("agent_completed") == 1


async def test_a_message_whose_run_never_began_is_announced(house, database, user, thread):
    """The server died between accepting the message and its first event: the next one tells of it, with its name."""
    async with living(house, database, model(), commits=0) as life:
        await life.submit(user, thread, "lonely", key="k", client_id="k")
        await life.runs.wait_idle()
    async with living(house, database, StepModel(text("fine"))) as life:
        await life.runs.wait_idle()
    log = read_log(house, thread)
    assert log.of("run_queued") == [{"content": "lonely", "agent": "worker", "position": 0, "client_id": "k"}]
    assert log.types == ["run_queued", "agent_started", "message_delta", "agent_completed"]


async def test_a_run_that_is_the_end_of_every_server_is_given_up(house, database, user, thread):
    """After so many losses it ends as interrupted, and the next server is spared."""
    bounds = RunSettings(resumes=2)
    for life_number in range(4):
        async with living(house, database, StepModel([trio.sleep_forever]), bounds=bounds) as life:
            if life_number == 0:
                run_id = (await life.submit(user, thread)).run_id
                await life.logged(user, thread, "agent_started")
            elif life_number < 3:
                await life.logged(user, thread, "run_resumed", life_number)
            life.database.commits = 0
    assert row(house, run_id)[0] == "interrupted"
    log = read_log(house, thread)
    assert log.types.count("run_resumed") == 2
    assert log.of("run_interrupted")[0]["reason"].endswith("not the first time")


async def test_a_resumed_run_can_be_cancelled_and_keeps_each_word_once(
    house, database, user, thread, one_by_one
):
    """What stood at the checkpoint and what was said since; the words in between are void."""
    steps = [[*text("kept "), double(1)], [*text("void "), trio.sleep_forever]]
    async with living(house, database, StepModel(*steps), tools=[Doubler().tool]) as life:
        run_id = (await life.submit(user, thread)).run_id
        await life.logged(user, thread, "message_delta", 2)
        life.database.commits = 0
    async with living(house, database, StepModel(*steps), tools=[Doubler().tool]) as life:
        await life.logged(user, thread, "message_delta", 3)
        assert await life.runs.cancel(user, run_id)
    log = read_log(house, thread)
    (resumed,) = log.of("run_resumed")
    assert (resumed["step"], resumed["output"]) == (1, "kept ")
    assert resumed["message_id"] == log.of("message_delta")[0]["message_id"]
    assert said(house, thread) == [("kept void ", True)]
    assert log.types[-1] == "run_cancelled"


# -- states ------------------------------------------------------------------------------------------


async def test_a_state_is_as_large_as_the_last_step_and_goes_with_its_run(house, database, user):
    """A run of many steps keeps one row, however many runs there are; none is left when they have ended."""
    rows = []

    async def look():
        await trio.lowlevel.checkpoint()
        rows.append(kept(house))

    steps = [[look, double(number)] for number in range(30)]
    bounds = RunSettings(running_per_user=20)
    limits = RunLimits(steps=100)
    doubler = Doubler()
    async with living(
        house, database, StepModel(*steps, text("done")), tools=[doubler.tool], bounds=bounds, limits=limits
    ) as life:
        for _ in range(20):
            await life.submit(user, house.thread(user))
        await life.runs.wait_idle()
    assert len(rows) == 600
    assert 0 < max(rows) <= 20
    assert sum(doubler.made.values()) == 600
    assert kept(house) == 0


async def test_a_run_without_calls_keeps_nothing(house, database, user, thread):
    """Not one statement more: the checkpoint of a step that ends the run would be read by nobody."""
    async with living(house, database, StepModel(text("hello")), commits=1000) as life:
        statements = []
        batch = life.database.batch

        async def listen(each):
            statements.extend(statement.sql for statement in each)
            return await batch(each)

        life.database.batch = listen
        await (await life.submit(user, thread)).run.done.wait()
    assert not [sql for sql in statements if "checkpoints" in sql or "approvals" in sql]


async def test_a_state_that_is_too_large_fails_its_run(house, database, user, thread, monkeypatch):
    """With a code of its own, and what was said is kept."""
    monkeypatch.setattr(app.chat.ledger, "STATE_BYTES", 200)
    async with living(
        house, database, StepModel([*text("x" * 300), double(1)]), tools=[Doubler().tool]
    ) as life:
        accepted = await life.submit(user, thread)
        await accepted.run.done.wait()
    assert accepted.run.failure.code == "state_too_large"
    assert said(house, thread) == [("x" * 300, True)]


class Counted(msgspec.Struct):
    """What the agent below keeps."""

    count: int


def counting(kind=Counted):
    """Return an agent that counts to three with a state of its own, a tool call at each number."""

    async def run(self, request):
        state = request.resumed(kind) or Counted(0)
        for number in range(state.count, 3):
            await request.tools.call(f"call-{number}", "double", {"number": number})
            await request.say(f"{number} ")
            await request.checkpoint(Counted(number + 1))

    return type(
        "Counting",
        (Agent,),
        {
            "name": "worker",
            "description": "Counts.",
            "tools": ("double",),
            "resumable": True,
            "run": run,
        },
    )


async def test_an_agent_of_ones_own_goes_on_from_what_it_kept(house, database, user, one_by_one):
    """Killed after any commit it counts to three all the same, and no call that had ended is made again."""
    for alive in range(2, 16):
        thread, doubler = house.thread(user), Doubler()
        ended = set()
        for commits in (alive, -1):
            made = Counter(doubler.made)
            async with living(
                house, database, None, tools=[doubler.tool], agents=[counting()], commits=commits
            ) as life:
                if commits == alive:
                    run_id = (await life.submit(user, thread)).run_id
                await life.runs.wait_idle()
            assert all(doubler.made[call_id] == made[call_id] for call_id in ended)
            ended = {payload["call_id"] for payload in read_log(house, thread).of("tool_completed")}
        assert row(house, run_id)[:2] == ("completed", "0 1 2 ")
        assert read_log(house, thread).shown() == "0 1 2 "
        assert ended == {"call-0", "call-1", "call-2"}


async def test_an_agent_that_has_changed_fails_its_run_aloud(house, database, user, thread, one_by_one):
    """What it kept is not what it keeps now: a code that says so, rather than a guess."""

    class Other(msgspec.Struct):
        words: list[str]

    tools = [Doubler().tool]
    async with living(house, database, None, tools=tools, agents=[counting()], commits=8) as life:
        accepted = await life.submit(user, thread)
        await life.runs.wait_idle()
    async with living(house, database, None, tools=tools, agents=[counting(Other)]) as life:
        await life.runs.wait_idle()
    assert row(house, accepted.run_id)[0] == "failed"
    assert read_log(house, thread).of("run_failed")[0]["code"] == "state_unreadable"


# -- a server that is told to stop -------------------------------------------------------------------


async def test_what_survives_is_left_to_the_next_server(house, database, user):
    """A resumable run and a queued one are suspended, a plain one is cancelled; neither counts as a loss."""
    threads = [house.thread(user) for _ in range(2)]
    agents = [worker(), worker(resumable=False, name="plain")]
    bounds = RunSettings(resumes=0)
    sleeping = StepModel([*text("so far "), trio.sleep_forever])
    async with living(house, database, sleeping, agents=agents, bounds=bounds) as life:
        sturdy = await life.submit(user, threads[0])
        plain = await life.submit(user, threads[1], agent="plain")
        waiting = await life.submit(user, threads[1], "next", agent="plain")
        for thread in threads:
            await life.logged(user, thread, "message_delta")
        life.runs.cancel_all("shutdown")
        await life.runs.wait_idle()
        assert sturdy.run_id in life.runs, "nobody takes it for an orphan"
        assert await interrupt_orphans(life.runs, life.journal, life.database, min_age_seconds=0) == 0
        late = await life.submit(user, house.thread(user), "late")
        await late.run.done.wait()
    assert row(house, plain.run_id)[:2] == ("cancelled", "so far ")
    assert read_log(house, threads[0]).of("run_suspended") == [{"reason": "shutdown"}]
    assert [row(house, run.run_id)[0] for run in (sturdy, waiting, late)] == ["running", "queued", "queued"]
    bounds = RunSettings(resumes=1)
    async with living(house, database, StepModel(text("fine")), agents=agents, bounds=bounds) as life:
        assert (life.recovered.taken_up, life.recovered.interrupted) == (3, 0)
        await life.runs.wait_idle()
    assert {row(house, run.run_id)[:2] for run in (sturdy, waiting, late)} == {("completed", "fine")}
    log = read_log(house, threads[0])
    assert log.types[-4:] == ["run_suspended", "run_resumed", "message_delta", "agent_completed"]
    assert log.shown() == "fine"


async def test_a_run_that_takes_too_long_fails(virtual_time, house, database, user, thread):
    """Its time is over: a code of its own, everything released, and what was said is kept."""
    bounds = RunSettings(seconds=0.05)
    async with living(
        house, database, StepModel([*text("so far "), trio.sleep_forever]), bounds=bounds
    ) as life:
        accepted = await life.submit(user, thread)
        await accepted.run.done.wait()
        assert life.kernel.budget.statistics().in_use == 0
    assert accepted.run.failure.code == "run_timeout"
    assert said(house, thread) == [("so far ", True)]
