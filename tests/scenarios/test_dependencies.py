"""What belongs to a request: long-lived parts are given it for a call, never have it, and it does not outlive its request."""

import inspect
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio

import app.chat.restore
import app.store.checkpoints
import app.store.events
import app.store.history
import app.store.runs
import app.store.threads
from app.chat.approvals import Approvals
from app.chat.calls import open_call
from app.chat.dispatch import Dispatch
from app.chat.execution import Executor
from app.chat.ledger import RunLedger
from app.chat.runs import Runs
from app.engine.agent import Agent
from app.engine.children import Children
from app.engine.engine import run_agent
from app.engine.events import AgentEvents
from app.engine.request import AgentRequest
from app.engine.supervisor import Supervisor
from app.tools.dispatcher import Dispatcher
from app.tools.schema import ToolContext
from nurseries.errors import RequestEnded
from nurseries.events import Emitter
from nurseries.nursery import RequestNursery
from nurseries.postgres.scoped import ScopedDatabase
from nurseries.postgres.transaction import Transaction
from nurseries.request import Live, Request
from nurseries.server import Sessions
from nurseries.session import Session
from tests.fixtures.vitals import at_rest
from tests.scenarios import agents
from tests.scenarios.graph import alive, reached

AGENTS = "tests.scenarios.agents"
OWNED = (
    Request, RequestNursery, ScopedDatabase, Transaction, Emitter,
    Agent, AgentRequest, AgentEvents, Children, Dispatcher, ToolContext,
)  # fmt: skip
"""What exists for one request: its database session, its events, its engine and its tools."""


async def test_no_component_holds_what_belongs_to_a_request_that_runs(serving, meet):
    """In the middle of six runs, no long-lived part reaches a session, engine, emitter or dispatcher of any of them."""
    kinds = ("painter", "sailor", "tailor")
    meeting = meet(7)
    async with serving(agents=AGENTS) as served, AsyncExitStack() as stack:
        users = [await stack.enter_async_context(served.user()) for _ in range(6)]
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number, user in enumerate(users):
                    thread = await user.thread()
                    nursery.start_soon(partial(user.run, thread, "hello", agent=kinds[number % 3]))
                while len(meeting.met) < 6:
                    await trio.lowlevel.checkpoint()
                # The list of what is open, which the audit reads, and the sockets are where they may be found.
                found = reached(served.vitals, (*OWNED, Session), but=(Live, Sessions))
                everything = reached(served.vitals, OWNED)
                await meeting.join(None)
        assert found == []
        assert len(everything) >= 6 * 4  # the walk does find them, where there is a way


async def test_nothing_that_belonged_to_a_request_is_alive_after_it(serving, forgotten_logs):
    """Runs that succeed, fail, use tools and are cancelled, over HTTP and sockets: then nothing of them exists."""
    async with serving(agents=AGENTS) as served:
        before = Counter(alive((*OWNED, Session)))  # of tests that failed: pytest keeps their frames
        async with served.user() as user, user.socket() as socket:
            thread = await user.thread()
            for content, agent in (("calculate 6*7", "assistant"), ("hello", "gossip"), ("alas", "blurting")):
                await user.run(thread, content, agent=agent)
            await socket.send(type="subscribe", thread_id=thread, after=0)
            await socket.until("run_failed")
            await socket.send(
                type="user_message", thread_id=thread, agent="load", content='{"sleep_ms": 60000}'
            )
            run_id = (await socket.until("agent_started"))[-1]["run_id"]
            during = Counter(alive((*OWNED, Session))) - before
            assert {"AgentRequest", "Emitter", "ScopedDatabase", "Dispatcher", "Load", "Session"} <= set(
                during
            )
            await socket.send(type="cancel", run_id=run_id)
            await socket.until("run_cancelled")
        await at_rest(served.url)
        assert Counter(alive((*OWNED, Session))) - before == Counter()


async def test_what_an_agent_keeps_of_its_request_is_dead(serving, meet, monkeypatch):
    """An agent may hoard: the database, the events, the tools and the nursery that it kept do nothing any more."""
    monkeypatch.setattr(agents, "kept", [])
    meet(1)
    async with serving(agents=AGENTS) as served, served.user() as user, served.user() as other:
        thread = await user.thread()
        await user.run(thread, "hello", agent="hoarder")
        (request,) = agents.kept
        count = served.owner.execute("SELECT last_seq FROM events ORDER BY last_seq DESC LIMIT 1").fetchone()
        async with other.socket() as socket:
            for use in (
                partial(request.database.fetch, "SELECT 1"),
                partial(request.events.emit, "test.said", {}),
                partial(request.say, "too late"),
                partial(request.think, "too late"),
                partial(request.history, 1),
                partial(request.tools.call, "1", "clock", {}),
            ):
                with pytest.raises(RequestEnded):
                    await use()
            with pytest.raises(RuntimeError):
                request.nursery.start_soon(trio.sleep_forever)
            await socket.send(type="ping")
            assert await socket.receive() == {"type": "pong"}
        assert served.owner.execute("SELECT max(last_seq) FROM events").fetchone() == count
        agents.kept.clear()


async def test_what_an_agent_hoards_of_two_users_is_found_by_the_audit(serving, meet, watch, monkeypatch):
    """Two runs keep their requests in one list: the server's own audit names it, tells the trail, and turns critical."""
    monkeypatch.setattr(agents, "kept", [])
    meeting = meet(3)
    async with serving(agents=AGENTS) as served, served.user() as ann, served.user() as bob:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for user in (ann, bob):
                    nursery.start_soon(partial(user.run, await user.thread(), "hello", agent="hoarder"))
                while len(meeting.met) < 2:
                    await trio.lowlevel.checkpoint()
                report = await served.vitals.audit.audit()
                await meeting.join(None)
        found = [way for finding in report.findings for _, way in finding.paths if "kept" in way]
        assert found
        assert served.vitals.status()["health"] == "critical"
        entries = await served.trail("isolation_finding")
        assert {user_id for *both, _ in entries for user_id in both} == {ann.user_id, bob.user_id}
        assert any("kept" in str(finding) for finding in watch.findings)
        watch.findings.clear()  # it was planted
        agents.kept.clear()


async def test_a_supervisor_and_those_it_leads_are_each_given_their_own(serving, meet):
    """Three users' runs delegate to two agents each: nine engines at once, each its own, each of its own user."""
    met = meet(9).met
    async with serving(agents=AGENTS) as served, AsyncExitStack() as stack:
        users = [await stack.enter_async_context(served.user()) for _ in range(3)]
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for user in users:
                    nursery.start_soon(partial(user.run, await user.thread(), "hello", agent="leader"))
    for part in met[0]:
        assert len({id(member[part]) for member in met}) == 9, part
    leaders = {
        member["context"].request_id: member["context"]
        for member in met
        if member["context"].operation_depth == 0
    }
    assert {leader.user_id for leader in leaders.values()} == {user.user_id for user in users}
    led = [member["context"] for member in met if member["context"].operation_depth == 1]
    assert len(led) == 6
    for child in led:
        leader = leaders[child.parent_request_id]
        assert (child.user_id, child.thread_id) == (leader.user_id, leader.thread_id)


async def test_a_checkpoint_is_read_with_the_session_of_its_own_user_alone(serving, meet):
    """Two runs have kept their state: through each user's database there is one state, and it is that user's."""
    meeting = meet(3)
    async with serving(agents=AGENTS) as served, served.user() as ann, served.user() as bob:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for user in (ann, bob):
                    nursery.start_soon(partial(user.run, await user.thread(), user.user_id, agent="saver"))
                while len(meeting.met) < 2:
                    await trio.lowlevel.checkpoint()
                kernel = served.vitals.kernel
                for user in (ann, bob):
                    async with open_call(kernel, user.user_id) as call:
                        states = await call.database.fetch("SELECT user_id::text, state FROM checkpoints")
                    assert states == [(user.user_id, b'{"told":"%s"}' % user.user_id.encode())]
                await meeting.join(None)


GIVEN = {
    "message handling": [
        (Dispatch.__call__, "Session"),
        (Runs.submit, "Request"),
        (Runs.row, "Request"),
        (Runs.delete_thread, "Request"),
        (Approvals.answer, "Request"),
        (app.store.threads.create, "ScopedDatabase"),
        (app.store.runs.accept, "ScopedDatabase"),
        (app.store.runs.get, "ScopedDatabase"),
        (app.store.events.read, "ScopedDatabase"),
        (app.store.events.last_seq, "ScopedDatabase"),
        (app.store.history.conversation_before, "ScopedDatabase"),
    ],
    "supervisor": [(Supervisor.run, "AgentRequest"), (run_agent, "Request"), (Agent.run, "AgentRequest")],
    "checkpoints": [(app.chat.restore.restore, "Request"), (app.store.checkpoints.left, "ScopedDatabase")],
}
"""What acts for a user, and what it is given in each call."""


@pytest.mark.parametrize("part", GIVEN)
def test_what_acts_for_a_user_is_given_a_session_in_each_call(part):
    """Message handling, supervisor and checkpoints have a parameter for it, and no constructor takes one."""
    for function, kind in GIVEN[part]:
        assert any(
            kind in str(each.annotation) for each in inspect.signature(function).parameters.values()
        ), function
    for cls in (Dispatch, Runs, Approvals, Executor, Supervisor, RunLedger):
        for each in inspect.signature(cls).parameters.values():
            assert each.annotation not in {kind.__name__ for kind in OWNED}, cls
