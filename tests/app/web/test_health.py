"""Liveness, readiness, metrics, and what an administrator sees."""

import json
import os
import signal

import httpx
import psycopg

from nurseries.serving import ServingLimits
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.sse import watched
from tests.fixtures.vitals import at_rest, samples

LONG = {"content": json.dumps({"queries": 0, "sleep_ms": 60_000}), "agent": "load"}


def promote(database, user):
    """Make somebody an administrator."""
    with psycopg.connect(database.owner, autocommit=True) as owner:
        owner.execute("UPDATE users SET roles = '{admin}' WHERE user_id = %s", (user.user_id,))


async def test_a_server_that_runs_is_alive_and_ready(server):
    """Anybody may ask."""
    async with httpx.AsyncClient(base_url=server) as http:
        live, ready = await http.get("/health/live"), await http.get("/health/ready")
    assert (live.status_code, live.json()) == (200, {"status": "alive"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reasons": []})
    await at_rest(server)


async def test_a_draining_server_says_so_and_finishes_what_runs(database):
    """503 with the reason, new work refused with Retry-After, reading goes on; it ends when the last run has."""
    async with running_server(database.owner, drain_seconds=30) as url, signed_up(url) as user:
        thread = f"/v1/threads/{await user.thread()}"
        async with watched(user, f"{thread}/runs", LONG) as stream:
            started = (await stream.until("agent_started"))[-1]
            os.kill(os.getpid(), signal.SIGTERM)
            while (ready := await user.http.get("/health/ready")).status_code == 200:
                pass
            assert (ready.status_code, ready.json()["reasons"]) == (503, ["draining"])
            assert (ready.headers["Content-Type"], ready.json()["code"]) == (
                "application/problem+json",
                "not_ready",
            )
            assert int(ready.headers["Retry-After"]) >= 1
            assert (await user.http.get("/health/live")).status_code == 200
            refused = await user.http.post(f"{thread}/runs", json={"content": "time"})
            assert (refused.status_code, refused.json()["code"]) == (503, "draining")
            assert int(refused.headers["Retry-After"]) >= 1
            run = f"{thread}/runs/{started.data['run_id']}"
            assert (await user.http.get(run)).json()["status"] == "running"
            assert (await user.http.post(f"{run}/cancel")).json()["status"] == "cancelled"
            assert [record.type for record in await stream.rest()] == ["run_cancelled"]


async def test_metrics_are_prometheus_text(server, alice):
    """They parse, they count, and they name no user."""
    thread = await alice.thread()
    async with alice.socket():
        async with watched(alice, f"/v1/threads/{thread}/runs", LONG) as stream:
            started = (await stream.until("agent_started"))[-1]
            async with httpx.AsyncClient(base_url=server) as http:
                answer = await http.get("/metrics")
        await alice.http.post(f"/v1/threads/{thread}/runs/{started.data['run_id']}/cancel")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    values = samples(answer.text)
    for name, value in [
        ("sessions", 1),
        ("runs", 1),
        ("requests", 1),
        ("listening_users", 1),
        ("pool_checked_out", 0),
    ]:
        assert values[f"nurseries_{name}"] == value, name
    assert values["nurseries_events_total"] == 2
    assert values["process_resident_memory_bytes"] > 0
    assert alice.user_id not in answer.text
    await at_rest(server)


async def test_metrics_can_be_kept_from_people(database):
    """For administrators alone, or switched off."""
    async with running_server(database.owner, metrics="admin") as url, signed_up(url) as user:
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/metrics")).status_code == 401
        assert (await user.http.get("/metrics")).status_code == 403
        promote(database, user)
        assert "nurseries_runs 0.0" in (await user.http.get("/metrics")).text
    async with running_server(database.owner, metrics="nobody") as url, signed_up(url) as user:
        promote(database, user)
        assert (await user.http.get("/metrics")).status_code == 403


async def test_the_pages_of_an_administrator_are_for_administrators(server, alice, bob, database):
    """401, 403, 200; the role holds from the next request on, and its loss too."""
    paths = ["/v1/admin/status", "/v1/admin/nurseries"]
    async with httpx.AsyncClient(base_url=server) as http:
        for path in paths:
            assert (await http.get(path)).status_code == 401
            refused = await alice.http.get(path)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    promote(database, alice)
    for path in paths:
        assert (await alice.http.get(path)).status_code == 200
        assert (await bob.http.get(path)).status_code == 403
    with psycopg.connect(database.owner, autocommit=True) as owner:
        owner.execute("UPDATE users SET roles = '{}'")
    for path in paths:
        assert (await alice.http.get(path)).status_code == 403


async def test_the_status_counts_everything(server, alice, bob, database):
    """Pool, budgets, breaker, sessions, runs, event log, isolation and memory, as they are at that moment."""
    promote(database, alice)
    thread = f"/v1/threads/{await bob.thread()}"
    async with bob.socket(), watched(bob, f"{thread}/runs", LONG) as stream:
        started = (await stream.until("agent_started"))[-1]
        status = (await alice.http.get("/v1/admin/status")).json()
        await bob.http.post(f"{thread}/runs/{started.data['run_id']}/cancel")
    assert {"pool", "budgets", "breaker", "sessions", "runs", "event_log", "isolation", "memory"} <= set(
        status
    )
    assert {
        "size", "checked_in", "checked_out", "overflow", "invalidated", "waiting", "timeouts", "utilization", "status",
    } <= set(status["pool"])  # fmt: skip
    assert (status["health"], status["state"], status["pool"]["status"]) == ("healthy", "ready", "healthy")
    assert (status["breaker"]["state"], status["sessions"], status["runs"]["open"]) == (
        "closed",
        {"open": 1, "users": 1},
        1,
    )
    assert (status["event_log"]["events"], status["event_log"]["waiting"]) == (2, 0)
    assert status["isolation"]["misdeliveries_prevented"] == 0
    assert status["memory"]["rss_bytes"] > 0
    await at_rest(server)


async def test_the_tree_shows_who_lives(server, alice, bob, database):
    """The task of each run, the open requests and sockets with their users and ages; gone when they are."""
    promote(database, alice)
    thread = f"/v1/threads/{await bob.thread()}"

    def names(task):
        return [task["name"], *(name for child in task["children"] for name in names(child))]

    async with bob.socket(), watched(bob, f"{thread}/runs", LONG) as stream:
        run_id = (await stream.until("agent_started"))[-1].data["run_id"]
        tree = (await alice.http.get("/v1/admin/nurseries")).json()
        await bob.http.post(f"{thread}/runs/{run_id}/cancel")
    assert f"run {run_id}" in names(tree["tree"])
    assert len(names(tree["tree"])) == tree["tasks"]
    assert [(each["run_id"], each["user_id"]) for each in tree["requests"]] == [(run_id, bob.user_id)]
    assert [each["user_id"] for each in tree["sessions"]] == [bob.user_id]
    assert all(each["age"] >= 0 for each in tree["requests"] + tree["sessions"])
    await at_rest(server)
    tree = (await alice.http.get("/v1/admin/nurseries")).json()
    assert (tree["requests"], tree["sessions"]) == ([], [])
    assert f"run {run_id}" not in names(tree["tree"])


async def test_a_flood_of_requests_is_told_when_to_come_back(database):
    """429 with Retry-After above the rate of an address."""
    limits = ServingLimits(request_burst=20, requests_per_second=0.1)
    async with running_server(database.owner, serving=limits) as url, httpx.AsyncClient(base_url=url) as http:
        answers = [await http.get("/health/live") for _ in range(30)]
    assert [answer.status_code for answer in answers[:20]] == [200] * 20
    refused = answers[-5:]
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(429, "rate_limited")}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
