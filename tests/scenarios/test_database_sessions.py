"""Database sessions: each user's rows are theirs, each session comes back, and what fails leaves nothing."""

from contextlib import AsyncExitStack
from functools import partial

import psycopg
import pytest
import trio
from psycopg.conninfo import conninfo_to_dict

from nurseries.errors import InvalidContext, Misdelivery, NurseriesError, RequestEnded
from nurseries.ids import new_id
from nurseries.postgres.failures import QueryFailed
from nurseries.postgres.scoped import Statement

OWN = "INSERT INTO threads (thread_id, user_id, title) VALUES ($1::uuid, app_user_id(), $2)"
FOREIGN = "INSERT INTO threads (thread_id, user_id) VALUES ($1::uuid, $2::uuid)"
TITLES = "SELECT title FROM threads ORDER BY title"
USERS, SESSIONS, POOL = 20, 5, 20


def titles(house, *users):
    """Return what these users' threads are called, as somebody who sees everything knows it."""
    rows = house.owner.execute("SELECT title FROM threads WHERE user_id = ANY(%s::uuid[])", (list(users),))
    return sorted(title for (title,) in rows)


async def test_isolation_between_users_who_share_one_connection(housing):
    """Two users take turns on it: each reads, changes and removes their own rows, and finds no others."""
    async with housing(size=1, overflow=0) as house:
        ann, bob = house.context(), house.context()
        async with house.request(ann) as (anns, _), house.request(bob) as (bobs, _):
            for request, title in ((anns, "of ann"), (bobs, "of bob")):
                await request.database.execute("UPDATE threads SET title = $1", title)
            assert await anns.database.fetch(TITLES) == [("of ann",)]
            assert await bobs.database.fetch(TITLES) == [("of bob",)]
            theirs = "WHERE thread_id = $1::uuid"
            assert await bobs.database.fetch(f"SELECT FROM threads {theirs}", ann.thread_id) == []
            assert await bobs.database.execute(f"UPDATE threads SET title = '' {theirs}", ann.thread_id) == 0
            assert await bobs.database.execute(f"DELETE FROM threads {theirs}", ann.thread_id) == 0
            assert await bobs.database.execute("DELETE FROM threads") == 1
        assert titles(house, ann.user_id, bob.user_id) == ["of ann"]
        assert house.pool.statistics().peak == 1


async def test_isolation_holds_for_the_owner_of_the_tables(database):
    """Whoever owns a table and is no superuser sees no user's row in it: the policies are forced."""
    with psycopg.connect(database.owner, autocommit=True) as owner:
        user, thread = new_id(), new_id()
        owner.execute(
            "INSERT INTO users (user_id, email, email_key, password_hash) VALUES (%s, 'a', 'a', '')", (user,)
        )
        owner.execute("INSERT INTO threads (thread_id, user_id) VALUES (%s, %s)", (thread, user))
        with owner.transaction(force_rollback=True):
            owner.execute(
                "CREATE ROLE tables_owner; GRANT USAGE ON SCHEMA public TO tables_owner;"
                " ALTER TABLE users OWNER TO tables_owner; ALTER TABLE threads OWNER TO tables_owner;"
                " SET LOCAL ROLE tables_owner"
            )
            for table in ("users", "threads"):
                assert owner.execute(f"SELECT user_id FROM {table}").fetchall() == [], table
        assert owner.execute("SELECT count(*) FROM threads").fetchone() == (1,)


async def test_isolation_outlives_no_transaction(housing):
    """What a session was told about its user ends with the unit of work: the next borrower is nobody."""
    async with housing(size=1, overflow=0) as house, house.request() as (request, _):
        assert await request.database.fetch("SELECT count(*) FROM threads") == [(1,)]
        async with request.database.transaction() as transaction:
            assert await transaction.fetch("SELECT count(*) FROM threads") == [(1,)]
        async with house.pool.lease("nobody") as connection:
            who, rows = await connection.run(
                (Statement("SELECT current_setting('app.user_id', true)"), Statement("SELECT FROM threads"))
            )
            assert connection.rows(who) == [("",)]
            assert connection.rows(rows) == []
        assert house.pool.statistics().invalidated == 0  # it is the one that served the user


async def test_twenty_users_with_five_sessions_each_share_a_pool_of_twenty(housing):
    """All hundred are open at once: twenty work, eighty wait, none is refused, and each finds its own user's rows."""
    async with housing(size=POOL, overflow=0, per_user=SESSIONS) as house:
        full, go_on, seen = trio.Event(), trio.Event(), []

        async def session(context):
            async with house.request(context) as (request, _):
                async with request.database.transaction() as transaction:
                    seen.append(
                        (context.user_id, await transaction.fetch("SELECT user_id::text FROM threads"))
                    )
                    if len(seen) == POOL:
                        full.set()
                    await go_on.wait()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(USERS):
                    context = house.context()
                    for _ in range(SESSIONS):
                        nursery.start_soon(session, house.context(context.user_id, context.thread_id))
                await full.wait()
                during = house.pool.statistics()
                while during.checked_out + during.waiting < USERS * SESSIONS:
                    await trio.lowlevel.checkpoint()
                    during = house.pool.statistics()
                go_on.set()
        after = house.pool.statistics()
        assert (during.checked_out, during.waiting, during.status) == (
            POOL,
            USERS * SESSIONS - POOL,
            "critical",
        )
        assert all(rows == [(user_id,)] for user_id, rows in seen)
        assert len(seen) == USERS * SESSIONS
        assert len({user_id for user_id, _ in seen}) == USERS
        assert (after.peak, after.timeouts, after.refused) == (POOL, 0, 0)
        assert (after.checked_out, after.checked_in, after.waiting, after.overflow) == (0, POOL, 0, 0)


async def test_a_user_with_all_their_sessions_open_waits_behind_themselves(housing):
    """The sixth session of one user waits for the first five, while another user is served at once."""
    async with housing(size=POOL, overflow=0, per_user=SESSIONS) as house:
        greedy, modest = house.context(), house.context()
        async with (
            house.request(greedy) as (request, _),
            house.request(modest) as (other, _),
            AsyncExitStack() as held,
        ):
            for _ in range(SESSIONS):
                transaction = await held.enter_async_context(request.database.transaction())
                await transaction.fetch("SELECT 1")
            sixth = trio.Event()

            async def one_more():
                await request.database.fetch("SELECT 1")
                sixth.set()

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(one_more)
                    while not house.pool.statistics().waiting and not sixth.is_set():
                        await trio.lowlevel.checkpoint()
                    assert await other.database.fetch("SELECT count(*) FROM threads") == [(1,)]
                    assert not sixth.is_set()
                    await held.aclose()
            assert sixth.is_set()


async def test_a_session_is_released_when_its_context_ends(housing, database):
    """Nothing is checked out, nothing is open on the server, and what was kept of the request opens nothing more."""
    role = conninfo_to_dict(database.request)[
        "user"
    ]  # sessions of others that are closed may still be ending
    async with housing(size=1, overflow=0) as house:
        async with house.request() as (request, _):
            database = request.database
            await database.fetch("SELECT 1")
        statistics = house.pool.statistics()
        assert (statistics.checked_out, statistics.checked_in, statistics.invalidated) == (0, 1, 0)
        for use in (partial(database.fetch, "SELECT 1"), partial(database.batch, [Statement("SELECT 1")])):
            with pytest.raises(RequestEnded):
                await use()
        with pytest.raises(RequestEnded):
            async with database.transaction():
                pytest.fail("a request that has ended has no transaction")
        states = house.owner.execute(
            "SELECT state FROM pg_stat_activity WHERE usename = %s", (role,)
        ).fetchall()
        assert states == [("idle",)]


async def test_the_children_of_a_request_end_before_its_session_does(housing):
    """A child that works on when the body has left still has database and events; when the block ends it is done."""
    async with housing(size=1, overflow=0) as house:
        context, left = house.context(), trio.Event()

        async def child(request):
            await left.wait()
            await request.database.execute(OWN, new_id(), "by the child")
            await request.events.emit("child_done", {})

        with trio.fail_after(30), house.streams.listen(context.user_id) as outbox:
            async with house.request(context) as (request, _):
                request.nursery.start_soon(child, request)
                left.set()
            assert [event.type for event in outbox.take_nowait()] == ["child_done"]
        assert titles(house, context.user_id) == ["", "by the child"]


async def test_a_request_that_fails_is_rolled_back(housing):
    """What it wrote is gone, its error comes out as it is, and its connection serves the next user."""
    async with housing(size=1, overflow=0) as house:
        context = house.context()
        with pytest.raises(ZeroDivisionError):
            async with house.request(context) as (request, _):
                async with request.database.transaction() as transaction:
                    await transaction.execute(OWN, new_id(), "written before the fault")
                    raise ZeroDivisionError
        assert titles(house, context.user_id) == [""]
        statistics = house.pool.statistics()
        assert (statistics.checked_in, statistics.invalidated) == (1, 0)


async def test_a_request_that_is_cancelled_is_rolled_back(housing):
    """What it wrote is gone, and its connection was cleaned rather than thrown away."""
    async with housing(size=1, overflow=0) as house:
        context = house.context()
        with trio.fail_after(30), trio.CancelScope() as scope:
            async with house.request(context) as (request, _):
                async with request.database.transaction() as transaction:
                    await transaction.execute(OWN, new_id(), "written before the cancel")
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert titles(house, context.user_id) == [""]
        statistics = house.pool.statistics()
        assert (statistics.checked_out, statistics.checked_in, statistics.invalidated) == (0, 1, 0)


async def test_a_query_that_is_cancelled_stops_on_the_server(housing):
    """It does not run on for nobody, and its connection and its place are free for the next user at once."""
    async with housing(size=1, overflow=0) as house:
        context = house.context()
        with trio.fail_after(30):
            async with house.request(context) as (request, _), trio.open_nursery() as nursery:
                nursery.start_soon(request.database.fetch, "SELECT pg_sleep(3600)")
                while not _running(house, "SELECT pg_sleep(3600)"):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert not _running(house, "SELECT pg_sleep(3600)")
            assert house.pool.statistics().checked_out == 0
            async with house.request() as (other, _):
                assert await other.database.fetch("SELECT count(*) FROM threads") == [(1,)]
        assert house.pool.statistics().invalidated == 0


def _running(house, sql):
    return house.owner.execute(
        "SELECT FROM pg_stat_activity WHERE state = 'active' AND query = %s", (sql,)
    ).fetchall()


async def test_a_request_that_writes_for_somebody_else_is_rolled_back(housing):
    """The database refuses the foreign row, and what the transaction wrote for its own user goes with it."""
    async with housing(size=1, overflow=0) as house:
        context, other = house.context(), house.context()
        with pytest.raises(QueryFailed) as refused:
            async with house.request(context) as (request, _):
                async with request.database.transaction() as transaction:
                    await transaction.execute(OWN, new_id(), "written before the foreign row")
                    await transaction.execute(FOREIGN, new_id(), other.user_id)
        assert refused.value.sqlstate == "42501"
        assert titles(house, context.user_id, other.user_id) == ["", ""]
        assert house.pool.statistics().invalidated == 0


@pytest.mark.parametrize("error", [Misdelivery("not yours"), InvalidContext("user_id", "nobody")])
async def test_a_request_that_trips_an_isolation_error_is_rolled_back(housing, error):
    """Whatever it had written, it is as if the request had not been."""
    async with housing(size=1, overflow=0) as house:
        context = house.context()
        with pytest.raises(NurseriesError) as tripped:
            async with house.request(context) as (request, _):
                async with request.database.transaction() as transaction:
                    await transaction.execute(OWN, new_id(), "written before the error")
                    raise error
        assert tripped.value is error
        assert titles(house, context.user_id) == [""]
        assert house.pool.statistics().invalidated == 0


@pytest.mark.parametrize(
    "left_behind",
    [
        "BEGIN",
        "SELECT set_config('app.user_id', '{user_id}', false)",
        "CREATE TEMPORARY TABLE threads (title text)",
    ],
    ids=["a transaction", "an identity", "a table"],
)
async def test_a_session_in_which_something_was_left_is_used_by_nobody_else(housing, left_behind):
    """The connection is closed instead of lent again, and the next user sees a fresh one."""
    async with housing(size=1, overflow=0) as house:
        context = house.context()
        async with house.pool.lease("careless") as connection:
            await connection.run((Statement(left_behind.format(user_id=context.user_id)),))
            careless = connection.pid
        assert house.pool.statistics().invalidated == 1
        async with house.pool.lease("next") as connection:
            assert connection.pid != careless
            (rows,) = await connection.run((Statement("SELECT FROM threads"),))
            assert connection.rows(rows) == []
