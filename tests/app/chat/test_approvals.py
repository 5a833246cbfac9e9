"""A person in the loop: asked once, answered once, in whatever life of the run; a call that is not approved is never made."""

from collections import Counter
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
import trio

from app.audit.event import log_event
from app.audit.refusals import Caller
from app.chat.approvals import AlreadyDecided, Approvals, Question
from app.chat.calls import open_call
from app.chat.settings import RunSettings
from app.engine.agent import Agent
from app.engine.model import ToolCall
from app.errors import InvalidField, NotFound
from app.store import approvals as store
from app.tools.ledger import Decided
from app.tools.schema import Parameters, Tool
from nurseries.errors import Draining
from nurseries.ids import new_id
from tests.app.chat.life import StepModel, living, read_log, text, worker


class Order(Parameters, frozen=True):
    """What to pay for."""

    item: str


class Payments:
    """A tool that needs an approval, and one that does not."""

    def __init__(self):
        self.paid = Counter()
        self.asked_price = trio.Event()
        self.tools = [
            Tool("pay", "Pays.", Order, self.pay, approval=True),
            Tool("price", "Says the price.", Order, self.price),
        ]

    async def pay(self, context, order):
        await trio.lowlevel.checkpoint()
        self.paid[context.call_id] += 1
        return f"paid {order.item}"

    async def price(self, _context, order):
        await trio.lowlevel.checkpoint()
        self.asked_price.set()
        return f"{len(order.item)} euros"


def pay(item="tea"):
    return ToolCall("x", "pay", {"item": item})


@pytest.fixture
def payments():
    return Payments()


@pytest.fixture
def begin(house, database, payments):
    """Live with an agent that pays for what the first step asks, and then says what came of it."""

    @asynccontextmanager
    async def begin(*calls, **options):
        model = StepModel([*text("Let me see. "), *(calls or [pay()])], text("Done."))
        async with living(house, database, model, tools=payments.tools, **options) as life:
            yield life, model

    return begin


async def asked(life, user, thread, count=1):
    """Return what the user has been asked, once there are so many questions."""
    await life.logged(user, thread, "approval_requested", count)
    return [
        (event["run_id"], event["payload"]["call_id"])
        for event in read_log(life.house, thread).events
        if event["type"] == "approval_requested"
    ]


async def decide(life, user, question, decision, note=None, **options):
    """Decide as a client over HTTP does, and return what it is answered."""
    approvals = Approvals(life.runs, log_event)
    async with open_call(life.kernel, user) as call:
        waiting = await approvals.answer(call, *question, decision, note, caller=Caller(), **options)
    if waiting is not None:
        await waiting.settled.wait()
    async with open_call(life.kernel, user) as call:
        return await approvals.settle(call, *question, decision)


def decisions(house):
    return house.owner.execute("SELECT decision, note FROM approvals ORDER BY requested_at").fetchall()


async def test_an_approved_call_is_made(begin, house, user, thread, payments):
    """Asked, decided, executed, told to the model; each of it in the log, in this order, and in the table."""
    async with begin() as (life, model):
        accepted = await life.submit(user, thread)
        ((run_id, call_id),) = await asked(life, user, thread)
        assert run_id == accepted.run_id
        assert not payments.paid
        (shown,) = read_log(house, thread).of("approval_requested")
        assert shown == {"call_id": call_id, "tool": "pay", "arguments": {"item": "tea"}} | {
            "expires_at": shown["expires_at"]
        }
        left = datetime.fromisoformat(shown["expires_at"]) - datetime.now(UTC)
        assert timedelta(minutes=55) < left < timedelta(minutes=61)
        approval = await decide(life, user, (run_id, call_id), "approve", "go on", thread_id=thread)
        assert (approval.decision, approval.note, approval.arguments) == ("approve", "go on", {"item": "tea"})
        await accepted.run.done.wait()
    assert payments.paid == {call_id: 1}
    log = read_log(house, thread)
    assert log.types[3:] == [
        "approval_requested",
        "approval_resolved",
        "tool_executing",
        "tool_completed",
        "message_delta",
        "agent_completed",
    ]
    assert log.of("approval_resolved") == [{"call_id": call_id, "decision": "approve", "note": "go on"}]
    assert model.told[1].turns[-1].results[0].result == "paid tea"


async def test_a_denied_call_is_never_made(begin, house, user, thread, payments):
    """The model is told so, with what the person wrote, and the run goes on."""
    async with begin() as (life, model):
        accepted = await life.submit(user, thread)
        (question,) = await asked(life, user, thread)
        await decide(life, user, question, "deny", "too dear")
        await accepted.run.done.wait()
    assert not payments.paid
    log = read_log(house, thread)
    assert "tool_executing" not in log.types
    (completed,) = log.of("tool_completed")
    assert (completed["ok"], completed["error"]) == (False, "not approved: the user said no: too dear")
    assert model.told[1].turns[-1].results[0].error == completed["error"]
    assert log.types[-1] == "agent_completed"


async def test_nobody_who_decides_is_a_refusal(begin, house, user, thread, payments):
    """After its time, by the wall clock, the question is closed and the call is not made."""
    async with begin(bounds=RunSettings(approval_seconds=0.05)) as (life, _):
        accepted = await life.submit(user, thread)
        await accepted.run.done.wait()
        (question,) = await asked(life, user, thread)
        with pytest.raises(AlreadyDecided, match="expired"):
            await decide(life, user, question, "approve")
    assert not payments.paid
    log = read_log(house, thread)
    assert log.of("approval_resolved")[0]["decision"] == "expired"
    assert log.of("tool_completed")[0]["error"] == "not approved: nobody decided in time"
    assert decisions(house) == [("expired", None)]


async def test_what_a_waiting_run_holds(begin, house, user, payments):
    """No connection, and no place among its user's running runs: others of that user run meanwhile."""
    threads = [house.thread(user) for _ in range(4)]
    bounds = RunSettings(running_per_user=1, seconds=30)
    async with begin(bounds=bounds) as (life, _):
        runs = []
        for thread in threads:
            runs.append((await life.submit(user, thread)).run)
            await asked(life, user, thread)
        assert life.kernel.pool.statistics().checked_out == 0
        assert [run.status for run in runs] == ["running"] * 4
        for thread in threads:
            (question,) = await asked(life, user, thread)
            await decide(life, user, question, "approve")
        for run in runs:
            await run.done.wait()
    assert len(payments.paid) == 4
    assert {run.status for run in runs} == {"completed"}


async def test_places_to_wait_in_are_bounded(begin, house, user, payments):
    """Beyond them a run that waits keeps the place that it runs in, so that questions cannot take all requests."""
    threads = [house.thread(user) for _ in range(4)]
    bounds = RunSettings(running_per_user=2, asking_per_user=1)
    async with begin(bounds=bounds) as (life, _):
        runs = [(await life.submit(user, thread)).run for thread in threads]
        first = {run.context.thread_id: run for run in runs[:3]}
        for thread in first:
            await asked(life, user, thread)
        assert [run.status for run in runs] == ["running"] * 3 + ["queued"]
        (question,) = await asked(life, user, threads[2])
        await decide(life, user, question, "approve")
        await asked(life, user, threads[3])
        for thread in threads:
            (question,) = await asked(life, user, thread)
            await decide(life, user, question, "approve")
        await life.ended()
    assert {run.status for run in runs} == {"completed"}
    assert sum(payments.paid.values()) == 4


async def test_waiting_for_a_person_is_not_running(virtual_time, begin, user, thread, payments):
    """The time that a run may take stands still while it waits; then it goes on counting."""
    async with begin(bounds=RunSettings(seconds=0.3)) as (life, _):
        accepted = await life.submit(user, thread)
        (question,) = await asked(life, user, thread)
        await trio.sleep(0.5)  # longer than the run may run
        await decide(life, user, question, "approve")
        await accepted.run.done.wait()
        assert accepted.run.status == "completed"


async def test_cancelling_a_run_that_waits(begin, house, user, thread, payments):
    """It ends at once, the question with it, and nobody can answer it any more."""
    async with begin() as (life, _):
        accepted = await life.submit(user, thread)
        (question,) = await asked(life, user, thread)
        assert await life.runs.cancel(user, accepted.run_id)
        assert life.kernel.budget.statistics().in_use == 0
        with pytest.raises(AlreadyDecided, match="void"):
            await decide(life, user, question, "approve")
    log = read_log(house, thread)
    assert log.types[-1] == "run_cancelled"
    assert "approval_resolved" not in log.types
    assert decisions(house) == [("void", None)]
    assert not payments.paid


async def test_several_calls_are_asked_for_at_once(begin, house, user, thread, payments):
    """More than run at once; they are decided in any order, and hold up no call that needs nobody."""
    calls = [pay(f"item {n}") for n in range(6)] + [ToolCall("y", "price", {"item": "tea"})]
    async with begin(*calls) as (life, model):
        accepted = await life.submit(user, thread)
        questions = await asked(life, user, thread, 6)
        await payments.asked_price.wait()
        for number, question in enumerate(reversed(questions)):
            await decide(life, user, question, "deny" if number % 2 else "approve")
        await accepted.run.done.wait()
    assert sum(payments.paid.values()) == 3
    results = model.told[1].turns[-1].results
    assert sorted(result.ok for result in results) == [False] * 3 + [True] * 4
    items = {p["call_id"]: p["arguments"]["item"] for p in read_log(house, thread).of("approval_requested")}
    assert {result.result for result in results if result.ok} == {
        f"paid {items[call_id]}" for call_id in payments.paid
    } | {"3 euros"}


async def test_the_first_decision_counts(begin, user, thread, payments):
    """The same again is harmless, at once and after the run; another one is refused."""
    async with begin() as (life, _):
        accepted = await life.submit(user, thread)
        (question,) = await asked(life, user, thread)
        answers = []

        async def answer(decision):
            try:
                answers.append((await decide(life, user, question, decision)).decision)
            except AlreadyDecided:
                answers.append("refused")

        async with trio.open_nursery() as people:
            for decision in ("approve", "deny", "approve", "deny"):
                people.start_soon(answer, decision)
        await accepted.run.done.wait()
        first = next(answer for answer in answers if answer != "refused")
        assert sorted(answers) == sorted([first, first, "refused", "refused"])
        assert (await decide(life, user, question, first)).decision == first
        with pytest.raises(AlreadyDecided):
            await decide(life, user, question, "deny" if first == "approve" else "approve")
    assert sum(payments.paid.values()) == (first == "approve")


async def test_nobody_decides_for_somebody_else(begin, house, user, thread, payments):
    """To another user the question does not exist, whatever they know of it; nor does one that nobody asked."""
    async with begin() as (life, _):
        await life.submit(user, thread)
        ((run_id, call_id),) = await asked(life, user, thread)
        stranger = house.user()
        for who, run, call, where in [
            (stranger, run_id, call_id, None),
            (stranger, run_id, call_id, thread),
            (user, new_id(), call_id, None),
            (user, run_id, new_id(), None),
            (user, run_id, "x" * 300, None),
            (user, "nonsense", call_id, None),
            (user, run_id.upper(), call_id, None),
            (user, run_id, call_id, house.thread(user)),
        ]:
            with pytest.raises(NotFound, match="no such approval"):
                await decide(life, who, (run, call), "approve", thread_id=where)
        with pytest.raises(InvalidField, match="note"):
            await decide(life, user, (run_id, call_id), "approve", "x" * 1001)
        assert decisions(house) == [(None, None)]
        async with open_call(life.kernel, stranger) as call:
            assert await store.of_run(call.database, run_id) == []
    assert not payments.paid


async def test_nobody_is_asked_about_what_cannot_be_done(begin, house, user, thread):
    """Wrong arguments fail the call before a person is troubled."""
    async with begin(ToolCall("x", "pay", {"price": 1})) as (life, _):
        accepted = await life.submit(user, thread)
        await accepted.run.done.wait()
    log = read_log(house, thread)
    assert "approval_requested" not in log.types
    assert not log.of("tool_completed")[0]["ok"]


async def test_an_agent_cannot_approve_for_its_user(house, database, user, thread, payments):
    """Its database shows it the question, and lets it answer none."""
    answers = []

    class Sly(Agent):
        name = "worker"
        description = "Pays."
        tools = ("pay",)

        async def run(self, request):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(request.tools.call, "call", "pay", {"item": "gold"})
                while not await request.database.fetch("SELECT FROM approvals"):
                    await trio.lowlevel.checkpoint()
                for sql in (
                    "UPDATE approvals SET decision = 'approve'",
                    "DELETE FROM approvals",
                    "INSERT INTO approvals SELECT * FROM approvals",
                ):
                    try:
                        answers.append(await request.database.execute(sql))
                    except Exception as error:  # noqa: BLE001
                        answers.append(type(error).__name__)
                nursery.cancel_scope.cancel()

    async with living(house, database, None, tools=payments.tools, agents=[Sly]) as life:
        await (await life.submit(user, thread)).run.done.wait()
    assert answers == ["QueryFailed"] * 3
    assert not payments.paid


async def test_an_operation_inside_a_run_can_ask_too(house, database, user, thread, payments):
    """A sub-agent's question carries its own run id, by which it is answered."""

    class Chief(Agent):
        name = "chief"
        description = "Delegates."
        agents = ("worker",)

        async def run(self, request):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(request.delegate, "worker", "pay")

    model = StepModel([pay()], text("paid"))
    agents = [Chief, worker(tools=("pay",))]
    async with living(house, database, model, tools=payments.tools, agents=agents) as life:
        accepted = await life.submit(user, thread, agent="chief")
        questions = await asked(life, user, thread, 2)
        assert all(run_id.startswith(f"{accepted.run_id}_worker_") for run_id, _ in questions)
        await decide(life, user, questions[0], "approve", thread_id=thread)
        await decide(life, user, questions[1], "deny", thread_id=thread)
        await accepted.run.done.wait()
    assert payments.paid == {questions[0][1]: 1}


# -- in several lives --------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [True, False])
async def test_a_question_outlives_its_server(begin, house, user, thread, payments, killed):
    """Killed or told to stop: the next one asks nothing again, keeps the time of expiry, and takes the answer."""
    bounds = RunSettings(running_per_user=1)
    async with begin(bounds=bounds) as (life, _):
        accepted = await life.submit(user, thread)
        (question,) = await asked(life, user, thread)
        if killed:
            life.database.commits = 0
        else:
            await life.runs.wait_idle()  # a drain does not wait for people
            life.runs.cancel_all("shutdown")
            await life.runs.wait_idle()
            with pytest.raises(Draining):
                await decide(life, user, question, "approve")
    before = house.owner.execute("SELECT expires_at FROM approvals").fetchall()
    other = house.thread(user)
    async with begin(bounds=bounds) as (life, _):
        busy = await life.submit(user, other, content="another", agent="worker")
        await asked(life, user, other)
        await decide(life, user, question, "approve", thread_id=thread)
        await life.runs.cancel(user, busy.run_id)
        await life.runs.wait_idle()
    assert payments.paid == {question[1]: 1}
    log = read_log(house, thread)
    assert log.types.count("approval_requested") == log.types.count("approval_resolved") == 1
    assert log.types.count("run_suspended") == (not killed)
    assert log.types[-1] == "agent_completed"
    after = house.owner.execute(
        "SELECT expires_at FROM approvals WHERE run_id = %s", (accepted.run_id,)
    ).fetchall()
    assert before == after


async def test_a_question_is_answered_after_a_restart_however_much_runs(house, database, user, payments):
    """It is taken up by waiting, so it needs no place among the user's running runs to hear the answer."""

    class Sleeper(Agent):
        name = "sleeper"
        description = "Sleeps."
        resumable = True

        async def run(self, request):
            await trio.sleep_forever()

    agents = [Sleeper, worker(tools=("pay",))]
    model = StepModel([pay()], text("Done."))
    threads = [house.thread(user) for _ in range(10)]
    async with living(
        house, database, model, tools=payments.tools, agents=agents, bounds=RunSettings(running_per_user=20)
    ) as life:
        for sleeping in threads[:-1]:
            await life.submit(user, sleeping, agent="sleeper")
            await life.logged(user, sleeping, "agent_started")
        accepted = await life.submit(user, threads[-1])
        (question,) = await asked(life, user, threads[-1])
        life.database.commits = 0
    async with living(
        house, database, model, tools=payments.tools, agents=agents, bounds=RunSettings(running_per_user=1)
    ) as life:
        with trio.fail_after(20):
            await decide(life, user, question, "approve")
        run = life.runs.live(user, accepted.run_id)
        for other in life.runs:
            if other is not run:
                other.cancel("requested")
        await run.done.wait()
        assert run.status == "completed"


def test_a_question_has_one_answer():
    """The first that comes in time; after the time there is only one."""
    question = Question.expiring(60)
    question.decide("approve", "yes")
    question.decide("deny", "no")
    assert question.decided == Decided("approve", "yes")
    late = Question.expiring(-1)
    late.decide("approve", "yes")
    assert late.decided == Decided("expired")


async def test_a_question_that_expired_meanwhile_is_closed(begin, house, user, thread, payments):
    """The time that nobody served counts."""
    async with begin() as (life, _):
        await life.submit(user, thread)
        await asked(life, user, thread)
        life.database.commits = 0
    house.owner.execute("UPDATE approvals SET expires_at = now() - interval '1 second'")
    async with begin() as (life, _):
        await life.ended()
    assert decisions(house) == [("expired", None)]
    assert read_log(house, thread).types[-1] == "agent_completed"
    assert not payments.paid


@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_a_kill_at_any_moment_neither_asks_nor_pays_twice(
    begin, house, user, payments, one_by_one, decision
):
    """Whatever of question, decision, call and result was committed when the server died."""

    async def answer(life, thread):
        (question,) = await asked(life, user, thread)
        with suppress(Draining):  # the server died with the answer
            await decide(life, user, question, decision)

    twice = 0
    for alive in range(4, 14):
        payments.paid.clear()
        thread = house.thread(user)
        completed = []
        for commits in (alive, -1):
            async with begin(commits=commits) as (life, _):
                if commits == alive:
                    accepted = await life.submit(user, thread)
                async with trio.open_nursery() as people:
                    people.start_soon(answer, life, thread)
                    await life.ended()
                    people.cancel_scope.cancel()
            if commits == alive:
                completed = read_log(house, thread).of("tool_completed")
                paid = sum(payments.paid.values())
        log = read_log(house, thread)
        assert log.types[-1] == "agent_completed", alive
        assert log.types.count("approval_requested") == 1
        assert log.types.count("approval_resolved") == 1
        assert log.types.count("tool_completed") == 1
        if decision == "deny":
            assert not payments.paid
        elif completed:
            assert sum(payments.paid.values()) == paid == 1
        else:
            twice += sum(payments.paid.values()) == 2
        assert house.owner.execute(
            "SELECT status FROM runs WHERE run_id = %s", (accepted.run_id,)
        ).fetchone() == ("completed",)
    assert twice <= 1, "only the call that was cut off between its payment and its result"


async def test_a_plain_agents_question_ends_with_its_server(house, database, user, thread, payments):
    """Its run cannot go on, so nobody needs the answer."""
    agents = [worker(resumable=False, tools=("pay",))]
    model = StepModel([pay()], text("done"))
    async with living(house, database, model, tools=payments.tools, agents=agents) as life:
        await life.submit(user, thread)
        (question,) = await asked(life, user, thread)
        life.database.commits = 0
    async with living(house, database, model, tools=payments.tools, agents=agents) as life:
        with pytest.raises(AlreadyDecided, match="void"):
            await decide(life, user, question, "approve")
    assert read_log(house, thread).types[-1] == "run_interrupted"
    assert not payments.paid
