"""The audit trail's table: what is in it stays as it is, until it is as old as the owner said."""

from datetime import UTC, datetime
from uuid import uuid4

import attrs
import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InsufficientPrivilege

from app.store import audit as store
from app.store.owner import open_owner
from app.store.roles import PARTS
from nurseries.ids import new_id
from nurseries.postgres.pool import open_pool
from nurseries.postgres.scoped import Database

GIVEN = "entry_id, occurred_at, last_at, count, kind, details"
VALUES = "gen_random_uuid(), now(), now(), 1, 'login', '{}'"
WAITING = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


def entry(**fields):
    values = dict.fromkeys(field.name for field in attrs.fields(store.NewEntry))
    values |= {
        "entry_id": new_id(),
        "occurred_at": NOW,
        "last_at": NOW,
        "count": 1,
        "kind": "login",
        "details": "{}",
    }
    return store.NewEntry(**(values | fields))


@pytest.fixture
def owner(database):
    with psycopg.connect(database.owner, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def trail(database):
    """The database as the trail's service has it."""
    async with open_pool(database.audit) as pool:
        yield Database(pool, borrower="audit")


def age(owner, days):
    """Make everything that is in the table older."""
    owner.execute("UPDATE audit SET written_at = written_at - make_interval(days => %s)", [days])


async def test_entries_are_read_in_the_order_of_their_numbers(trail):
    """Page by page from any number, each entry as it was written; after the last there is nothing."""
    user, other = new_id(), new_id()
    ids = {name: new_id() for name in ("session_id", "connection_id", "thread_id", "run_id")}
    await store.append(
        trail,
        [
            entry(kind="login", user_id=user, address="192.0.2.1", **ids, details='{"a": [1, "é"]}'),
            entry(kind="ticket_reused", user_id=other, presented_by=user, count=3),
            entry(kind="login", user_id=other),
        ],
    )
    first, second, third = await store.page(trail, 0, 10)
    assert first.id < second.id < third.id
    assert (first.kind, first.user_id, first.address, first.occurred_at) == ("login", user, "192.0.2.1", NOW)
    assert {name: getattr(first, name) for name in ids} == ids
    assert first.details == {"a": [1, "é"]}
    assert (second.count, second.presented_by) == (3, user)
    assert await store.page(trail, 0, 2) == [first, second]
    assert await store.page(trail, second.id, 2) == [third]
    assert await store.page(trail, third.id, 2) == []
    assert await store.page(trail, 0, 10, kind="login") == [first, third]
    assert await store.page(trail, 0, 10, user_id=user) == [first, second]
    assert await store.page(trail, 0, 1, kind="login", user_id=other) == [third]


async def test_a_repeated_batch_is_written_once(trail):
    """After a COMMIT without an answer the same batch is written again, perhaps with more behind it."""
    entries = [entry(), entry()]
    await store.append(trail, entries)
    await store.append(trail, [*entries, entry()])
    assert len(await store.page(trail, 0, 10)) == 3


async def test_numbers_become_visible_in_their_order(trail, database, owner, nursery):
    """A second writer waits for the first one's COMMIT, so whoever reads on from the last number misses nothing."""
    appended = trio.Event()

    async def append():
        await store.append(trail, [entry(kind="logout")])
        appended.set()

    with psycopg.connect(database.audit) as slow:
        slow.execute("SELECT pg_advisory_xact_lock(%s)", [store._APPEND_LOCK])
        slow.execute(f"INSERT INTO audit ({GIVEN}) VALUES ({VALUES})")
        nursery.start_soon(append)
        with trio.fail_after(30):
            while not owner.execute(WAITING).fetchall() and not appended.is_set():
                await trio.lowlevel.checkpoint()
        assert await store.page(trail, 0, 10) == []
        slow.commit()
        await appended.wait()
    first, second = await store.page(trail, 0, 10)
    assert (first.kind, second.kind) == ("login", "logout")
    assert first.id < second.id


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET kind = 'nothing'",
        "UPDATE audit SET written_at = '2000-01-01'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        f"INSERT INTO audit (id, {GIVEN}) OVERRIDING SYSTEM VALUE VALUES (1, {VALUES})",
        f"INSERT INTO audit (written_at, {GIVEN}) VALUES ('2000-01-01', {VALUES})",
        "ALTER TABLE audit DISABLE ROW LEVEL SECURITY",
        "DROP TABLE audit",
        "UPDATE audit_retention SET keep = '1 second'",
        "CREATE OR REPLACE FUNCTION expire_audit(at_most integer) RETURNS bigint LANGUAGE sql RETURN 1",
        "SET ROLE postgres",
    ],
)
async def test_the_role_that_writes_the_trail_cannot_change_it(trail, database, owner, statement):
    """It appends and reads; a trace cannot be altered, removed, backdated or numbered by whoever holds its password."""
    await store.append(trail, [entry()])
    before = owner.execute("SELECT * FROM audit").fetchall()
    with psycopg.connect(database.audit, autocommit=True) as connection:
        with pytest.raises(InsufficientPrivilege):
            connection.execute(statement)
    assert owner.execute("SELECT * FROM audit").fetchall() == before


@pytest.mark.parametrize("part", PARTS)
def test_no_login_of_the_server_changes_the_trail_or_becomes_somebody_who_can(database, cluster, part):
    """Whoever holds its password tries, as itself and as every other role that there is."""
    [others] = cluster.admin.execute("SELECT array_agg(quote_ident(rolname)) FROM pg_roles").fetchone()
    changes = ("UPDATE audit SET count = 1", "DELETE FROM audit", "TRUNCATE audit")
    with psycopg.connect(getattr(database, part), autocommit=True) as connection:
        assert _refused(connection, *changes) == len(changes)
        become = []
        for role in others:
            for statement in ("SET ROLE {}", "SET SESSION AUTHORIZATION {}"):
                if not _refused(connection, statement.format(role)):
                    become.append(connection.execute("SELECT current_user").fetchone()[0])
                    assert _refused(connection, *changes) == len(changes), role
                    connection.execute("RESET ROLE; RESET SESSION AUTHORIZATION")
    login = conninfo_to_dict(getattr(database, part))["user"]
    assert set(become) == {login, f"nurseries_{part}"}


def _refused(connection, *statements):
    """Return how many of the statements are refused for want of the right."""
    count = 0
    for statement in statements:
        try:
            connection.execute(statement)
        except InsufficientPrivilege:
            count += 1
    return count


def test_no_role_of_the_server_may_change_the_trail(owner):
    """By privilege: INSERT and SELECT for one role, and for the others nothing at all."""
    held = owner.execute(
        "SELECT r.rolname::text, p.privilege FROM pg_roles r,"
        " unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS p (privilege)"
        " WHERE r.rolname LIKE 'nurseries%' AND has_any_column_privilege(r.rolname, 'audit', p.privilege)"
        " UNION SELECT r.rolname::text, p.privilege FROM pg_roles r,"
        " unnest(ARRAY['DELETE', 'TRUNCATE', 'TRIGGER']) AS p (privilege)"
        " WHERE r.rolname LIKE 'nurseries%' AND has_table_privilege(r.rolname, 'audit', p.privilege)"
    ).fetchall()
    assert set(held) == {("nurseries_audit", "INSERT"), ("nurseries_audit", "SELECT")}


async def test_what_is_too_old_goes_and_nothing_else(trail, database, owner):
    """By the age that the owner has set, a bounded number at a time, whatever time an entry itself claims."""
    await store.append(trail, [entry(occurred_at=datetime(2001, 1, 1, tzinfo=UTC)) for _ in range(1500)])
    assert await store.expire(trail) == 0
    age(owner, 89)
    assert await store.expire(trail) == 0
    age(owner, 2)
    await store.append(trail, [entry(kind="logout")])
    assert [await store.expire(trail) for _ in range(3)] == [1000, 500, 0]
    assert [left.kind for left in await store.page(trail, 0, 10)] == ["logout"]
    async with open_owner(database.owner) as server:
        await store.keep_for(server, 7.5)
    age(owner, 7)
    assert await store.expire(trail) == 0
    age(owner, 1)
    assert await store.expire(trail) == 1


async def test_an_owner_that_is_no_superuser_can_let_entries_expire(trail, owner):
    """The policies that hold the owner too let what has expired pass, and nothing else."""
    name = f"plain_{uuid4().hex[:8]}"
    owner.execute(f"CREATE ROLE {name}")
    try:
        for what in ("TABLE audit", "TABLE audit_retention", "FUNCTION expire_audit"):
            owner.execute(f"ALTER {what} OWNER TO {name}")
        await store.append(trail, [entry(), entry()])
        age(owner, 91)
        await store.append(trail, [entry()])
        owner.execute(f"SET ROLE {name}")
        assert owner.execute("SELECT count(*) FROM audit").fetchone() == (2,)
        owner.execute("RESET ROLE")
        assert await store.expire(trail) == 2
        assert len(await store.page(trail, 0, 10)) == 1
        owner.execute(f"SET ROLE {name}")
        assert owner.execute("DELETE FROM audit").rowcount == 0
    finally:
        owner.execute("RESET ROLE")
        owner.execute(f"REASSIGN OWNED BY {name} TO postgres; DROP OWNED BY {name}; DROP ROLE {name}")


async def test_whose_an_id_is(trail, house):
    """Threads, runs, messages and files are found with their users; what is nobody's is not."""
    context = house.context()
    message = house.message(context, "user", "a secret")
    house.owner.execute(
        "INSERT INTO runs (run_id, thread_id, user_id, agent, status) VALUES (%s, %s, %s, 'echo', 'queued')",
        (context.run_id, context.thread_id, context.user_id),
    )
    file = new_id()
    house.owner.execute(
        "INSERT INTO files (file_id, user_id, name, table_name, kind, bytes, row_count, columns)"
        " VALUES (%s, %s, 'a.csv', 'a', 'csv', 1, 1, '[]')",
        (file, context.user_id),
    )
    thread_id, run_id, user_id = context.thread_id, context.run_id, context.user_id
    found = await store.owners_of(trail, {thread_id, run_id, message, file, new_id()})
    assert set(found) == {
        store.Owned("thread", thread_id, thread_id, user_id),
        store.Owned("run", run_id, thread_id, user_id),
        store.Owned("message", message, thread_id, user_id),
        store.Owned("file", file, None, user_id),
    }
