"""The load agent does exactly what it is told, within bounds."""

import pytest
import trio

from app.engine.engine import Catalog, built_in_agents, built_in_tools, run_agent
from app.engine.errors import InvalidOrder
from app.engine.load import MAX_BYTES, read_order


async def run(request, content):
    catalog = Catalog(agents=built_in_agents(load=True), tools=built_in_tools())
    return await run_agent(request, catalog, agent="load", content=content, message_id="m1")


async def test_it_says_as_much_as_it_is_told(house):
    """So many deltas of that size, each beginning with the user's id, and nothing else."""
    async with house.request() as (request, heard):
        answer = await run(request, '{"events": 5, "queries": 3, "delta_bytes": 50}')
        events = heard()
        assert [kind for kind, _ in events] == ["message_delta"] * 5
        assert all(len(payload["text"]) == 50 for _, payload in events)
        assert all(payload["text"].startswith(f"{request.context.user_id} ") for _, payload in events)
        assert answer.output == "".join(payload["text"] for _, payload in events)
        assert answer.usage == {"events": 5, "queries": 3}


async def test_its_queries_reach_the_database(house):
    """What it measures is real: each query is a transaction of its own."""

    def transactions():
        house.owner.execute("SELECT pg_stat_clear_snapshot()")
        row = house.owner.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        )
        return row.fetchone()[0]

    async with house.request() as (request, _):
        before = transactions()
        await run(request, '{"queries": 200, "events": 0}')
        await request.database.fetch("SELECT pg_stat_force_next_flush()")
        await request.database.fetch("SELECT 1")
        assert transactions() - before >= 200


async def test_it_pauses(house, mock_clock):
    """The pause is in milliseconds, and comes before the answer."""
    async with house.request() as (request, heard):
        request.nursery.start_soon(run, request, '{"events": 1, "queries": 0, "sleep_ms": 60000}')
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(59.999)
        await trio.testing.wait_all_tasks_blocked()
        assert heard() == []
        mock_clock.jump(0.002)
        await trio.testing.wait_all_tasks_blocked()
        assert len(heard()) == 1


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"events": -1}', "$.events"),
        ('{"events": 10001}', "$.events"),
        ('{"events": 1.5}', "$.events"),
        ('{"events": "1"}', "$.events"),
        ('{"events": true}', "$.events"),
        ('{"events": null}', "$.events"),
        ('{"events": 99999999999999999999999}', "$.events"),
        ('{"queries": 1001}', "$.queries"),
        ('{"delta_bytes": 0}', "$.delta_bytes"),
        ('{"sleep_ms": 60001}', "$.sleep_ms"),
        ('{"user_id": "somebody"}', "`user_id`"),
        ('{"events": 10000, "delta_bytes": 65536}', f"events * delta_bytes is above {MAX_BYTES}"),
        ("", "content"),
        ("hello", "content"),
        ("[]", "content"),
        ('{"events": NaN}', "content"),
        ("\ud83d", "content"),
        ("[" * 100_000, "content"),
        ('{"events":' * 100_000, "$.events"),
    ],
)
def test_a_wrong_order_is_refused_by_name(content, named):
    """What is not an order, or is too much of one, is the caller's mistake; the message names the field."""
    with pytest.raises(InvalidOrder) as refused:
        read_order(content)
    assert named in str(refused.value)
    assert refused.value.field == "content"


def test_all_fields_are_optional():
    """An empty order is one with defaults."""
    assert read_order("{}") == read_order('{"events":20,"queries":2,"delta_bytes":32,"sleep_ms":0}')
