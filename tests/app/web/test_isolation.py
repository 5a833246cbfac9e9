"""The isolation audit of a whole server: with leaks that are planted, and without any under load."""

import json
from contextlib import AsyncExitStack

import httpx
import pytest
import trio

from app.settings import IsolationSettings
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.roles import promote
from tests.fixtures.sse import watched
from tests.fixtures.vitals import samples


def load(**order):
    return json.dumps({"queries": 2, "events": 20, **order})


async def waiting_run(user, agent, stack):
    """Start a run that goes on until the block ends."""
    thread = await user.thread()
    body = {"content": f"the secret of {user.user_id}", "agent": agent, "on_disconnect": "cancel"}
    stream = await stack.enter_async_context(watched(user, f"/v1/threads/{thread}/runs", body))
    await stream.until("agent_started")


@pytest.mark.parametrize(
    ("agent", "kind", "type_"),
    [
        ("class-keeper", "class attribute", "dict"),
        ("module-keeper", "module variable", "dict"),
        ("argument-keeper", "local variable", "list"),
        ("closure-keeper", "closure", "list"),
        ("meeter", "module variable", "trio.Event"),
        ("local-keeper", "local variable", "list"),
    ],
)
async def test_a_leak_between_users_is_found(database, agent, kind, type_):
    """By two runs of one agent, with the way to it and nothing of what is in it; the health is critical from then on."""
    async with (
        running_server(database.owner, agents="tests.app.web.leaking_agents") as url,
        signed_up(url) as alice,
        signed_up(url) as bob,
        AsyncExitStack() as stack,
    ):
        promote(database, alice)
        for user in (alice, bob):
            await waiting_run(user, agent, stack)
        await trio.testing.wait_all_tasks_blocked()
        report = (await alice.http.get("/v1/admin/isolation")).json()
        (finding,) = report["findings"]
        assert (finding["kind"], finding["type"]) == (kind, type_)
        assert set(finding["paths"]) == {alice.user_id, bob.user_id}
        assert "secret" not in json.dumps(report)
        assert report["health"] == "critical"
        status = (await alice.http.get("/v1/admin/status")).json()
        assert (status["health"], status["isolation"]["findings"]) == ("critical", 1)
        assert status["isolation"]["last"]["findings"] == report["findings"]
        async with httpx.AsyncClient(base_url=url) as http:
            metrics = samples((await http.get("/metrics")).text)
        assert metrics["nurseries_isolation_findings_total"] == 1
        assert metrics["nurseries_isolation_audits_total"] == 1


async def test_one_user_may_share_with_themselves(database):
    """And agents that keep to themselves leak nothing."""
    async with (
        running_server(database.owner, agents="tests.app.web.leaking_agents") as url,
        signed_up(url) as alice,
        signed_up(url) as bob,
        AsyncExitStack() as stack,
    ):
        promote(database, alice)
        for user, agent in (
            (alice, "class-keeper"),
            (alice, "class-keeper"),
            (alice, "keeper"),
            (bob, "keeper"),
        ):
            await waiting_run(user, agent, stack)
        report = (await alice.http.get("/v1/admin/isolation")).json()
        assert (report["findings"], report["health"], report["users"]) == ([], "healthy", 2)


async def test_nothing_is_shared_under_load(database):
    """Ten users with sockets, streams, tools, queues and cancels, audited all the while."""
    users, reports = [], []

    async def live(user):
        """Chat over a socket and over HTTP while two streams are open."""
        busy, quiet, chat = [await user.thread() for _ in range(3)]
        long = {"content": "wait", "agent": "patient", "on_disconnect": "cancel"}
        async with (
            user.socket() as socket,
            watched(user, f"/v1/threads/{busy}/events"),
            watched(user, f"/v1/threads/{quiet}/runs", long),
        ):
            await socket.send(type="user_message", thread_id=busy, agent="patient", content="wait")
            await socket.send(type="user_message", thread_id=busy, content="a queued one")
            for _ in range(3):
                await user.run(chat, "calculate 1/3\ntime\nsearch calculate")
                await user.run(chat, load(queries=20, events=200, sleep_ms=5), agent="load")
            await socket.send(
                type="user_message", thread_id=busy, on_conflict="rollback", content="time", agent="assistant"
            )
            await socket.until("run_cancelled")

    async def audit(admin):
        while True:
            reports.append((await admin.http.get("/v1/admin/isolation")).json())

    unhurried = IsolationSettings(seconds=600)
    async with (
        running_server(database.owner, agents="tests.fixtures.desk_agents", isolation=unhurried) as url,
        signed_up(url) as admin,
    ):
        promote(database, admin)
        async with trio.open_nursery() as auditing:
            auditing.start_soon(audit, admin)

            async def one():
                async with signed_up(url) as user:
                    users.append(user.user_id)
                    await live(user)

            async with trio.open_nursery() as living:
                for _ in range(10):
                    living.start_soon(one)
            auditing.cancel_scope.cancel()
    assert len(set(users)) == 10
    assert len(reports) >= 10
    assert max(report["users"] for report in reports) == 10
    assert max(report["objects"] for report in reports) > 3000
    assert {report["truncated"] for report in reports} == {None}
    assert [finding for report in reports for finding in report["findings"]] == []


async def test_a_run_does_not_inherit_the_call_that_asked_for_it(database):
    """Through its context variables it would reach the call's headers, and the token in them."""
    async with (
        running_server(database.owner, agents="tests.app.web.inheriting_agents") as url,
        signed_up(url) as user,
    ):
        for disconnect in ("continue", "cancel"):
            outcome = await user.run(await user.thread(), "who asks?", agent="heir", on_disconnect=disconnect)
            assert outcome["output"] == "nothing inherited"


async def test_the_report_is_for_administrators(server, alice):
    """401 and 403."""
    async with httpx.AsyncClient(base_url=server) as http:
        assert (await http.get("/v1/admin/isolation")).status_code == 401
    assert (await alice.http.get("/v1/admin/isolation")).status_code == 403


async def test_audits_come_by_themselves(database):
    """On the schedule of the settings."""
    settings = IsolationSettings(every_seconds=0.05)
    async with (
        running_server(database.owner, isolation=settings) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        with trio.fail_after(30):
            while samples((await http.get("/metrics")).text)["nurseries_isolation_audits_total"] < 3:
                await trio.testing.wait_all_tasks_blocked(0.02)
