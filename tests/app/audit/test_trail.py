"""The service that writes the trail: nothing is lost that fits, and what does not fit is told."""

from datetime import UTC, datetime

import psycopg
import pytest
import structlog
import trio
import trio.testing

from app.audit.entry import Suspicion
from app.audit.event import KINDS, SecurityEvent
from app.audit.settings import AuditSettings
from app.audit.trail import Trail, open_trail
from nurseries.ids import new_id
from nurseries.postgres.pool import open_pool
from nurseries.postgres.scoped import Database

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture
async def pool(database):
    async with open_pool(database.audit) as pool:
        yield pool


@pytest.fixture
def owner(database):
    with psycopg.connect(database.owner, autocommit=True) as connection:
        yield connection


def make(pool, **settings):
    return Trail(Database(pool, borrower="audit"), AuditSettings(**settings), now=lambda: NOW)


def login(address="192.0.2.1"):
    return SecurityEvent("login", new_id(), address=address)


async def kinds(trail):
    return [entry.kind for entry in await trail.page(0, 200)]


async def test_what_is_recorded_is_written_in_order(pool, nursery):
    """At once as far as the teller is concerned, and soon in the table; batches keep the order."""
    trail = make(pool)
    await nursery.start(trail.run)
    events = [login() for _ in range(600)]
    for event in events:
        trail.record(event)
    assert trail.statistics().waiting == 600
    await trail.written()
    rows = [*(first := await trail.page(0, 500)), *(await trail.page(first[-1].id, 500))]
    assert [row.user_id for row in rows] == [event.user_id for event in events]
    assert all(row.occurred_at == NOW for row in rows)
    statistics = trail.statistics()
    assert (statistics.waiting, statistics.written, statistics.lost) == (0, 600, 0)
    nursery.cancel_scope.cancel()


async def test_a_request_that_fails_leaves_its_trace(pool, house, nursery):
    """The entry is written in a transaction of its own, whatever becomes of the one that was open."""
    trail = make(pool)
    await nursery.start(trail.run)
    context = house.context()
    with pytest.raises(ZeroDivisionError):
        async with house.request(context) as (request, _), request.database.transaction() as tx:
            await tx.fetch("DELETE FROM threads")
            trail.record(SecurityEvent("forbidden", context.user_id))
            raise ZeroDivisionError
    await trail.written()
    assert await kinds(trail) == ["forbidden"]
    nursery.cancel_scope.cancel()


async def test_what_waits_is_written_when_the_server_ends(pool):
    """A cancellation is not the end before the last entry is in the table, the counted ones too."""
    trail = make(pool)
    async with trio.open_nursery() as nursery:
        await nursery.start(trail.run)
        repeated = login()
        for _ in range(5):
            trail.record(repeated)
        nursery.cancel_scope.cancel()
    assert [entry.count for entry in await trail.page(0, 10)] == [1, 4]


async def test_a_flood_is_a_few_entries(pool, nursery):
    """A hundred thousand equal events: the first, and one for the others at the end of the window."""
    trail = make(pool, window_seconds=0.2)
    await nursery.start(trail.run)
    event = login()
    for _ in range(100_000):
        trail.record(event)
    assert trail.statistics().waiting == 1
    with trio.fail_after(10):
        while len(entries := await trail.page(0, 10)) < 2:
            await trio.testing.wait_all_tasks_blocked(0.05)
    assert [entry.count for entry in entries] == [1, 99_999]
    nursery.cancel_scope.cancel()


async def test_what_does_not_fit_is_counted_and_told(pool, nursery):
    """Overflow is logged once, and is an entry of its own with the number of those lost."""
    trail = make(pool, waiting=10)
    with structlog.testing.capture_logs() as logged:
        for _ in range(25):
            trail.record(login())
    assert [line["event"] for line in logged] == ["the audit trail loses events"]
    assert (trail.statistics().waiting, trail.statistics().lost) == (10, 15)
    await nursery.start(trail.run)
    with trio.fail_after(10):
        while trail.statistics().written < 11:
            await trio.testing.wait_all_tasks_blocked(0.05)
    *_, last = await trail.page(0, 50)
    assert (last.kind, last.count) == ("entries_lost", 15)
    trail.record(login())
    await trail.written()
    assert trail.statistics().lost == 15
    nursery.cancel_scope.cancel()


async def test_the_database_may_be_away(database, pool, owner, nursery):
    """Entries wait for it, and are written once it is back, each once."""
    trail = make(pool)
    await nursery.start(trail.run)
    role, name = psycopg.conninfo.conninfo_to_dict(database.audit)["user"], "current_database()"
    owner.execute(f'ALTER ROLE "{role}" NOLOGIN')
    owner.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {name} AND usename = %s",
        [role],
    )
    events = [login() for _ in range(5)]
    for event in events:
        trail.record(event)
    with trio.fail_after(20):
        while trail.statistics().retries < 2:
            await trio.testing.wait_all_tasks_blocked(0.05)
    assert trail.statistics().waiting == 5
    owner.execute(f'ALTER ROLE "{role}" LOGIN')
    with trio.fail_after(20):
        await trail.written()
    written = [user for (user,) in owner.execute("SELECT user_id::text FROM audit ORDER BY id").fetchall()]
    assert written == [event.user_id for event in events]
    nursery.cancel_scope.cancel()


async def test_an_unanswered_commit_is_repeated_and_written_once(pool, owner, nursery, monkeypatch):
    """The outcome is not guessed: the entry's own id settles it."""
    from app.audit import trail as module
    from nurseries.errors import OutcomeUnknown

    append, calls = module.store.append, []

    async def unanswered(database, rows):
        await append(database, rows)
        calls.append(len(rows))
        if len(calls) == 1:
            raise OutcomeUnknown("no answer to COMMIT")

    monkeypatch.setattr(module.store, "append", unanswered)
    trail = make(pool)
    await nursery.start(trail.run)
    trail.record(login())
    await trail.written()
    assert calls == [1, 1]
    assert owner.execute("SELECT count(*) FROM audit").fetchone() == (1,)
    nursery.cancel_scope.cancel()


async def test_an_entry_that_is_refused_takes_no_other_with_it(pool, nursery):
    """One that the database does not take is lost, counted and told; those beside it are written."""
    trail = make(pool)
    with structlog.testing.capture_logs():
        await nursery.start(trail.run)
        trail.record(SecurityEvent("login", "no-uuid"))
        trail.record(SecurityEvent("logout", new_id()))
        with trio.fail_after(10):
            while trail.statistics().written < 2:
                await trio.testing.wait_all_tasks_blocked(0.05)
    assert await kinds(trail) == ["logout", "entries_lost"]
    nursery.cancel_scope.cancel()


async def test_recording_never_raises(pool):
    """Not even where the clock does."""

    def broken():
        raise OSError("no clock")

    trail = Trail(Database(pool, borrower="audit"), AuditSettings(), now=broken)
    with structlog.testing.capture_logs() as logged:
        trail.record(login())
    assert logged[0]["event"] == "an event could not be recorded"


async def test_ids_asked_for_in_vain_are_looked_up(pool, house, nursery):
    """Somebody else's is recorded, with what it is and whose; one's own and nobody's are not."""
    trail = make(pool)
    await nursery.start(trail.run)
    ann, bob = house.context(), house.context()
    message = house.message(ann, "user", "hello")
    ids = (ann.thread_id, message, bob.thread_id, new_id())
    trail.suspect(
        Suspicion(SecurityEvent("foreign_id_asked", presented_by=bob.user_id, details={"path": "/x"}), ids)
    )
    trail.suspect(Suspicion(SecurityEvent("foreign_id_asked", presented_by=bob.user_id), (new_id(),)))
    await trail.written()
    entries = await trail.page(0, 10)
    assert {(entry.kind, entry.user_id, entry.presented_by) for entry in entries} == {
        ("foreign_id_asked", ann.user_id, bob.user_id)
    }
    assert [(entry.thread_id, entry.details["what"], entry.details["id"]) for entry in entries] == [
        (ann.thread_id, "thread", ann.thread_id),
        (ann.thread_id, "message", message),
    ]
    assert entries[0].details["path"] == "/x"
    nursery.cancel_scope.cancel()


async def test_ids_asked_for_just_before_the_end_are_looked_up(pool, house):
    """Each time counts, also where nothing but a look-up at the end tells whose they are."""
    alice, bob = house.context(), house.context()
    trail = make(pool)
    async with trio.open_nursery() as nursery:
        await nursery.start(trail.run)
        for _ in range(5):
            event = SecurityEvent("foreign_id_asked", presented_by=bob.user_id)
            trail.suspect(Suspicion(event, (alice.thread_id,)))
        nursery.cancel_scope.cancel()
    assert [(entry.user_id, entry.count) for entry in await trail.page(0, 10)] == [
        (alice.user_id, 1),
        (alice.user_id, 4),
    ]


async def test_what_expires_is_told(pool, owner, nursery):
    """The trail says how much of it went by age."""
    trail = make(pool)
    await nursery.start(trail.run)
    for _ in range(3):
        trail.record(login())
    await trail.written()
    assert await trail.expire() == 0
    owner.execute("UPDATE audit SET written_at = '2001-01-01'")
    assert await trail.expire() == 3
    await trail.written()
    (entry,) = await trail.page(0, 10)
    assert (entry.kind, entry.count) == ("entries_expired", 3)
    nursery.cancel_scope.cancel()


async def test_every_kind_can_be_written(database):
    """And a trail that is opened for a moment has written all at its end."""
    async with open_trail(database.audit, AuditSettings()) as trail:
        for kind in sorted(KINDS):
            trail.record(SecurityEvent(kind, details={"a": "b", "n": 1.5, "yes": True}))
    with psycopg.connect(database.owner) as owner:
        assert {kind for (kind,) in owner.execute("SELECT kind FROM audit")} == KINDS
