"""Supervised runs as a server runs them: cancelled at every moment, killed after every commit, and asked about."""

from collections import Counter
from copy import deepcopy

import trio

from app.agents import Agent, Member, Parameters, Supervisor, Tool
from app.engine.model import TextPiece, ToolCall
from app.isolation import SHARED
from nurseries.inspect import KERNEL, roots_of, shared_between
from tests.app.chat.life import StepModel, living, read_log
from tests.app.chat.test_approvals import asked, decide

ENDS = {"agent_completed", "run_failed", "run_cancelled", "run_interrupted"}


class Item(Parameters, frozen=True):
    """What to pay for."""

    item: str


class Payer(Agent):
    """Pays, if its user agrees."""

    name = "payer"
    description = "Pays."
    system = "You pay."
    tools = ("pay",)


class Reader(Agent):
    """Reads its user's rows."""

    name = "reader"
    description = "Reads."
    system = "You read."
    tools = ("count",)


class Desk(Supervisor):
    """Leads both."""

    name = "desk"
    description = "Leads."
    members = ("payer", Member("reader", retries=1))
    resumable = True


class Team:
    """Models by role, and tools that count how often they were called."""

    def __init__(self):
        self.called = Counter()
        self.tools = [
            Tool("pay", "Pays.", Item, self.pay, approval=True),
            Tool("count", "Counts.", Item, self.count),
        ]
        self.roles = {
            "You pay.": [[ToolCall("p", "pay", {"item": "tea"})], [TextPiece("paid")]],
            "You read.": [[ToolCall("c", "count", {"item": "tea"})], [TextPiece("counted")]],
        }
        delegations = [
            ToolCall("1", "delegate", {"agent": "payer", "task": "pay tea"}),
            ToolCall("2", "delegate", {"agent": "reader", "task": "count tea"}),
        ]
        self.lead = [delegations, [TextPiece("Paid, and counted.")]]

    async def pay(self, context, item):
        self.called["pay"] += 1
        await context.database.fetch("SELECT 1")
        return f"paid {item.item}"

    async def count(self, context, item):
        self.called["count"] += 1
        ((count,),) = await context.database.fetch("SELECT count(*) FROM messages")
        return count

    def stream(self, conversation):
        steps = self.roles.get(conversation.system, self.lead)
        return StepModel(*deepcopy(steps)).stream(conversation)  # what a model says, it says to one user

    def living(self, house, database, **options):
        return living(house, database, self, tools=self.tools, agents=[Desk, Payer, Reader], **options)


async def test_two_sub_agents_and_an_approval_can_be_cancelled_at_every_moment(
    house, database, user, cancel_everywhere
):
    """Whatever waits, for a person, a tool, a sibling or the log: all is released, and the run ends once, in the log."""
    ended = Counter()

    async with Team().living(house, database) as life:

        async def prepare():
            return house.thread(user)

        async def scenario(thread):
            async with trio.open_nursery() as owner:
                accepted = await life.submit(user, thread, agent="desk", owner=owner)
                (question,) = await asked(life, user, thread)
                await decide(life, user, question, "approve", thread_id=thread)
                await accepted.run.done.wait()

        async def nothing_left(thread):
            assert len(life.runs) == 0
            assert life.kernel.live.requests == {}
            assert life.kernel.budget.statistics().in_use == 0
            assert house.pool.statistics().checked_out == 0
            log = read_log(house, thread)
            ends = [
                event["type"] for event in log.events if event["type"] in ENDS and "_" not in event["run_id"]
            ]
            assert len(ends) == ("run_queued" in log.types)
            assert not log.types or log.types[-1] == ends[0]
            ended[ends[0] if ends else "not accepted"] += 1
            open_questions = house.owner.execute("SELECT count(*) FROM approvals WHERE decision IS NULL")
            assert open_questions.fetchone() == (0,)

        sweep = await cancel_everywhere(scenario, nothing_left, prepare=prepare, points=3000)
    assert sweep.caught > 100
    assert ended["run_cancelled"] > 100
    assert ended["agent_completed"] > 1
    assert not ended.keys() & {"run_failed", "run_interrupted"}


async def test_two_users_whose_sub_agents_wait_for_them_share_nothing(house, database):
    """While each of them is asked, the audit finds no object that one could change for the other."""
    users = [house.user() for _ in range(2)]
    threads = {user: house.thread(user) for user in users}
    team = Team()
    async with team.living(house, database) as life:
        runs = [(await life.submit(user, thread, agent="desk")).run for user, thread in threads.items()]
        for user, thread in threads.items():
            await asked(life, user, thread)
            await life.logged(user, thread, "agent_completed")  # the reader's
        scopes = {}
        for thing in (*life.kernel.live.requests.values(), *life.runs):
            scopes.setdefault(thing.context.user_id, []).extend(roots_of(thing))
        assert set(scopes) == set(users)
        # The team is this test's: a model and tools with counters, which a server would not have.
        shared = KERNEL.and_also(types=(*SHARED, Team), code={"app", "tests"})
        assert shared_between(scopes, infrastructure=shared) == []
        for run in runs:
            run.cancel("requested")


class Clerk(Reader):
    """Reads as well."""

    name = "clerk"


class Twins(Supervisor):
    """Leads two who read."""

    name = "twins"
    description = "Leads."
    members = ("reader", "clerk")
    resumable = True


async def test_a_supervisor_killed_after_any_commit_repeats_no_task_that_was_done(
    house, database, user, one_by_one
):
    """Same answer, and a sub-agent whose answer had been kept is not started again."""
    team = Team()
    team.lead = [
        [ToolCall(name, "delegate", {"agent": name, "task": "count"}) for name in ("reader", "clerk")],
        [TextPiece("Counted twice.")],
    ]
    agents = [Twins, Reader, Clerk]

    def life(commits):
        return living(house, database, team, tools=team.tools, agents=agents, commits=commits)

    def of_agents(log, event_type):
        return Counter(payload["agent"] for payload in log.of(event_type) if payload["depth"])

    thread = house.thread(user)
    async with life(1000) as undisturbed:
        await (await undisturbed.submit(user, thread, agent="twins")).run.done.wait()
        commits = 1000 - undisturbed.database.commits
    assert read_log(house, thread).of("agent_completed")[-1]["output"] == "Counted twice."
    kept = Counter()
    for alive in range(commits):
        thread = house.thread(user)
        async with life(alive) as first:
            await first.submit(user, thread, agent="twins")
            await first.runs.wait_idle()
        before = read_log(house, thread)
        async with life(-1) as second:
            await second.runs.wait_idle()
        log = read_log(house, thread)
        assert log.shown().endswith("Counted twice.")
        assert log.of("agent_completed")[-1]["output"] == "Counted twice."
        assert sum(e["type"] in ENDS and "_" not in e["run_id"] for e in log.events) == 1
        done = {
            payload["call_id"] for payload in before.of("tool_completed") if payload["tool"] == "delegate"
        }
        for name in [
            payload["arguments"]["agent"]
            for payload in before.of("tool_executing")
            if payload["tool"] == "delegate" and payload["call_id"] in done
        ]:
            kept[name] += 1
            assert of_agents(log, "agent_started")[name] == of_agents(before, "agent_started")[name] == 1
    assert kept.keys() == {"reader", "clerk"}
    assert kept.total() > 2
