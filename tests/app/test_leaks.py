"""What outlives its owner is found, and so is memory that only grows; what ends in order leaves nothing."""

import types
from functools import partial

import httpx
import pytest
import structlog.testing
import trio
import trio.testing

from app.leaks import FLOOR_BYTES, Leaks
from nurseries.budgets import Lease
from nurseries.ids import new_id
from nurseries.inspect import Orphan, find_orphans
from nurseries.request import open_child, open_request
from nurseries.server import Server
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.roles import promote
from tests.fixtures.vitals import samples

MEGABYTE = 1024 * 1024


@pytest.fixture
def runs():
    """The runs of a server, as far as anybody looks for leaks among them."""
    return []


@pytest.fixture
def memory():
    """How much memory the server takes, in bytes."""
    return types.SimpleNamespace(bytes=100 * MEGABYTE)


@pytest.fixture
def leaks(house, runs, memory):
    return Leaks(house.kernel, Server(), house.streams, runs, lambda: memory.bytes)


async def in_a_task(function, *args):
    """Run it in a task of its own, which then ends; returns what it returned."""
    results = []

    async def run():
        results.append(await function(*args))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
    return results[0]


async def test_what_is_open_has_an_owner(house, leaks):
    """Requests, requests in them, leases, connections, outboxes: all are somebody's as long as they are there."""
    context = house.context()
    async with open_request(house.kernel, context) as request, open_child(request, "part") as child:
        with house.streams.listen(context.user_id):
            async with child.database.transaction() as transaction:
                await transaction.fetch("SELECT 1")
                assert leaks.go_round() is leaks.last
                assert leaks.orphans() == []
    assert leaks.statistics()["orphans"] == 0


async def test_a_request_whose_task_has_ended_is_an_orphan(house, leaks):
    """It is listed as open, and nobody can end it."""

    async def open_and_keep():
        async with open_request(house.kernel, house.context()) as request:
            return request

    request = await in_a_task(open_and_keep)
    house.kernel.live.add(request)
    assert Orphan("request", request.context.request_id) in leaks.orphans()


async def test_leases_and_connections_without_a_request_are_orphans(house, leaks):
    """Those of users with an open request are theirs, others are nobody's; the probe of health is no user."""
    context = house.context()
    kernel = house.kernel
    async with open_request(kernel, context) as request, request.database.transaction() as transaction:
        await transaction.fetch("SELECT 1")
        assert leaks.orphans() == []
        more = await kernel.budget.acquire(context.user_id)
        assert leaks.orphans() == [Orphan("lease", context.user_id)]
        kernel.budget.release(more)
        probe, lost = await kernel.pool.acquire("health"), await kernel.pool.acquire("ghost")
        assert leaks.orphans() == [Orphan("connection", "ghost")]
        kernel.pool.release(probe)
        kernel.pool.release(lost)
    assert isinstance(kernel.pool.leases(), tuple)
    assert [lease for lease in kernel.budget.leases() if isinstance(lease, Lease)] == []


async def test_an_outbox_whose_listener_has_ended_is_an_orphan(house, leaks):
    """Events would be kept for it for ever."""
    listening = house.streams.listen("ann")

    async def listen():
        listening.__enter__()

    await in_a_task(listen)
    assert leaks.orphans() == [Orphan("outbox", "ann")]
    listening.__exit__(None, None, None)
    assert leaks.orphans() == []


async def test_a_task_beside_all_requests_is_an_orphan(house, leaks, nursery):
    """An agent may start one, which then goes on for ever; what libraries start so is theirs."""

    async def work(*, until):
        await until.wait()

    over = trio.Event()
    nursery.start_soon(partial(work, until=over))
    assert leaks.orphans() == []
    task = trio.lowlevel.spawn_system_task(partial(work, until=over), name="work for ever")
    trio.lowlevel.spawn_system_task(over.wait)
    assert leaks.orphans() == [Orphan("task", task.name)]
    over.set()
    await trio.testing.wait_all_tasks_blocked()
    assert leaks.orphans() == []


async def test_a_session_whose_task_has_ended_is_an_orphan(house):
    """One that has not begun is none."""

    async def nursery():
        async with trio.open_nursery() as opened:
            return opened

    ended = types.SimpleNamespace(id="ended", tasks=await in_a_task(nursery))
    early = types.SimpleNamespace(id="early", tasks=None)
    assert find_orphans(house.kernel, [ended, early], house.streams) == [Orphan("session", "ended")]


async def test_a_run_without_a_task_is_an_orphan_when_two_rounds_have_seen_it(leaks, runs, nursery):
    """It may be about to get its task, or have just lost it; one that has a task is none."""
    lost, kept = (types.SimpleNamespace(run_id=name, task_name=f"run {name}") for name in ("lost", "kept"))
    runs += [lost, kept]
    nursery.start_soon(trio.sleep_forever, name="run kept")
    await trio.testing.wait_all_tasks_blocked()
    leaks.go_round()
    assert leaks.orphans() == []
    with structlog.testing.capture_logs() as logs:
        leaks.go_round()
    assert leaks.orphans() == [Orphan("run", "lost")]
    assert [(log["event"], log["count"], log["log_level"]) for log in logs] == [("orphans", 1, "error")]
    runs.remove(lost)
    assert leaks.orphans() == []
    nursery.cancel_scope.cancel()


async def test_a_context_that_somebody_keeps_is_an_orphan_when_two_rounds_have_seen_it(house, leaks):
    """Created, and never released."""
    context = house.context()
    kept = []

    async def keep(context):
        async with open_request(house.kernel, context) as request:
            kept.append(request)

    await in_a_task(keep, context)
    for _ in range(10):
        await in_a_task(keep, house.context(context.user_id, context.thread_id))
    del kept[1:]
    del context
    leaks.go_round()
    assert leaks.orphans() == []
    assert leaks.statistics()["contexts_kept"] == 1
    leaks.go_round()
    assert [orphan.what for orphan in leaks.orphans()] == ["context"]
    statistics = leaks.statistics()
    assert (statistics["contexts_created"], statistics["contexts_released"]) == (11, 10)
    kept.clear()
    assert leaks.orphans() == []
    assert leaks.statistics()["contexts_kept"] == 0


async def test_rates_are_those_since_the_round_before(virtual_time, house, leaks):
    """Contexts made and let go, a second."""
    assert leaks.go_round().created_per_second == 0
    user = new_id()
    for _ in range(50):
        async with open_request(house.kernel, house.context(user, "thread-1")):
            pass
    await trio.sleep(10)
    measured = leaks.go_round()
    assert measured.created_per_second == pytest.approx(5, rel=0.1)
    assert measured.released_per_second == pytest.approx(5, rel=0.1)
    await trio.sleep(10)
    assert leaks.go_round().created_per_second == 0


async def test_memory_that_grows_is_told_once_for_each_tenth(leaks, memory):
    """Above a tenth over the baseline, which is the first round's, and above the floor."""
    memory.bytes = 2000 * MEGABYTE

    def told():
        with structlog.testing.capture_logs() as logs:
            growing = leaks.go_round().growing
        assert growing or not logs
        return [log["event"] for log in logs]

    assert told() == []
    assert leaks.baseline.rss_bytes == 2000 * MEGABYTE
    for now, expected in [
        (2190, []), (2210, ["memory grows"]), (2300, []), (2450, ["memory grows"]), (2500, []), (2100, []),
        (2250, ["memory grows"]),
    ]:  # fmt: skip
        memory.bytes = now * MEGABYTE
        assert told() == expected, now
    assert leaks.statistics()["last_round"]["growth"] == pytest.approx(0.125)
    assert leaks.statistics()["last_round"]["growing"] is True


async def test_a_small_server_may_warm_up(leaks, memory):
    """A tenth of little is little: the floor must be passed too."""
    leaks.go_round()
    memory.bytes += FLOOR_BYTES
    assert leaks.go_round().growing is False
    memory.bytes += MEGABYTE
    assert leaks.go_round().growing is True


async def test_the_baseline_is_taken_anew_when_more_is_open_than_ever(house, leaks, memory):
    """More users take more memory; as many users who take more do not."""
    leaks.go_round()
    with house.streams.listen("ann"):
        memory.bytes *= 3
        assert leaks.go_round().growing is False
        assert (leaks.baseline.rss_bytes, leaks.baseline.open) == (300 * MEGABYTE, 1)
        memory.bytes *= 3
        assert leaks.go_round().growing is True
    assert leaks.go_round().growing is True


async def test_a_server_that_did_much_has_nothing_left(database):
    """Status and metrics say so, from the janitor's rounds."""
    async with running_server(database.owner, janitor_seconds=0.05) as url, signed_up(url) as user:
        promote(database, user)
        async with user.socket() as socket:
            thread = await user.thread()
            for _ in range(3):
                await user.run(thread, "calculate 2*3\ntime")
            await socket.until("agent_completed")
        with trio.fail_after(30):
            while True:
                leaks = (await user.http.get("/v1/admin/status")).json()["leaks"]
                if leaks["last_round"] is not None and not leaks["contexts_kept"]:
                    break
        assert (leaks["orphans"], leaks["orphans_shown"]) == (0, [])
        assert leaks["contexts_created"] == leaks["contexts_released"] >= 3
        assert leaks["baseline"]["rss_bytes"] > MEGABYTE
        assert leaks["last_round"]["growing"] is False
        async with httpx.AsyncClient(base_url=url) as http:
            metrics = samples((await http.get("/metrics")).text)
        assert (metrics["nurseries_orphans"], metrics["nurseries_contexts_kept"]) == (0, 0)
        assert metrics["nurseries_contexts_created_total"] >= 3
        assert metrics["nurseries_memory_baseline_bytes"] > MEGABYTE
