"""What the janitor removes, and what it leaves."""

from app.store.runs import remove_old_keys
from nurseries.postgres.pool import open_pool
from nurseries.postgres.scoped import Database


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
        assert await remove_old_keys(accounts, 24 * 3600, 2) == 2
        assert await remove_old_keys(accounts, 24 * 3600, 2) == 1
        assert await remove_old_keys(accounts, 24 * 3600, 2) == 0
    left = house.owner.execute("SELECT key FROM idempotency_keys ORDER BY key").fetchall()
    assert left == [("3",), ("4",)]
