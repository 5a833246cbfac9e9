"""What the janitor removes, and what it leaves."""

import attrs
import psycopg
import trio
import trio.testing

from app.store.keys import remove_old
from nurseries.postgres.pool import open_pool
from nurseries.postgres.scoped import Database
from tests.fixtures.house import CHEAP, running_server, signed_up


async def test_old_keys_go_and_young_ones_stay(house, database):
    """Of all users, a bounded number at a time."""
    user = house.user()
    for number, age in enumerate(["2 days", "3 days", "25 hours", "23 hours", "1 minute"]):
        house.owner.execute(
            "INSERT INTO idempotency_keys (user_id, key, fingerprint, answer, created_at)"
            " VALUES (%s, %s, '', '{}', now() - %s::interval)",
            (user, str(number), age),
        )
    async with open_pool(database.accounts) as pool:
        accounts = Database(pool, borrower="accounts")
        assert await remove_old(accounts, 24 * 3600, 2) == 2
        assert await remove_old(accounts, 24 * 3600, 2) == 1
        assert await remove_old(accounts, 24 * 3600, 2) == 0
    left = house.owner.execute("SELECT key FROM idempotency_keys ORDER BY key").fetchall()
    assert left == [("3",), ("4",)]


THOUSANDS = {
    "sessions": "INSERT INTO sessions (session_id, user_id, expires_at)"
    " SELECT gen_random_uuid(), %(user)s, '2020-01-01' FROM generate_series(1, 3500)",
    "refresh_tokens": "INSERT INTO refresh_tokens (token_hash, session_id, user_id, expires_at, used_at)"
    " SELECT sha256((session_id::text || n)::bytea), session_id, user_id, expires_at, expires_at"
    " FROM sessions, generate_series(1, 3) n WHERE expires_at = '2020-01-01'",
    "tickets": "INSERT INTO tickets (ticket_hash, session_id, user_id, expires_at)"
    " SELECT sha256(n::text::bytea), %(session)s, %(user)s, '2020-01-01' FROM generate_series(1, 3500) n",
    "idempotency_keys": "INSERT INTO idempotency_keys (user_id, key, fingerprint, answer, created_at)"
    " SELECT %(user)s, n::text, '', '{}', '2020-01-01' FROM generate_series(1, 3500) n",
    "audit": "INSERT INTO audit (entry_id, occurred_at, last_at, count, kind, details, written_at)"
    " SELECT gen_random_uuid(), now(), now(), 1, 'login', '{}', '2020-01-01' FROM generate_series(1, 3500)",
}


async def test_thousands_of_rows_that_expired_go_and_what_lives_stays(database):
    """Sessions, their tokens, tickets and codes, which are one table, keys, and entries of the trail, while the server serves."""
    with psycopg.connect(database.owner, autocommit=True) as owner:

        def count(table):
            return owner.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

        patient = attrs.evolve(CHEAP, ticket_seconds=3600)
        serving = running_server(database.owner, janitor_seconds=0.2, accounts=patient)
        async with serving as url, signed_up(url) as user:
            thread = await user.thread()
            await user.http.post("/v1/auth/ticket")
            message = {"Idempotency-Key": "kept"}
            await user.http.post(f"/v1/threads/{thread}/runs", json={"content": "time"}, headers=message)
            session = owner.execute("SELECT session_id FROM sessions").fetchone()[0]
            with owner.transaction():
                for statement in THOUSANDS.values():
                    owner.execute(statement, {"user": user.user_id, "session": session})
            with trio.fail_after(60):
                while any(count(table) > 100 for table in THOUSANDS):
                    await trio.testing.wait_all_tasks_blocked(0.05)
            left = {table: count(table) for table in THOUSANDS}
            assert (left["sessions"], left["refresh_tokens"], left["tickets"]) == (1, 1, 1)
            assert left["idempotency_keys"] == 1
            assert (await user.http.get("/v1/me")).status_code == 200
        kinds = owner.execute("SELECT kind, count FROM audit ORDER BY id").fetchall()
        assert {("registered", 1), ("login", 1)} <= set(kinds)
        assert sum(number for kind, number in kinds if kind == "entries_expired") == 3500
