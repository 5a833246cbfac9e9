"""A session that another process ends has nothing open in this one."""

import pytest
import trio

from app.errors import InvalidGrant

LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


class Socket:
    """Something open, that can be waited for to be told."""

    def __init__(self):
        self.reasons = []
        self._told = trio.Event()

    def __call__(self, reason):
        self.reasons.append(reason)
        self._told.set()

    async def wait_told(self):
        with trio.fail_after(10):
            await self._told.wait()


@pytest.fixture
def other(accounts):
    """The service of another process: the same database, and nothing open."""
    return accounts.make()


async def test_a_user_disabled_elsewhere_is_out_here_at_once(accounts, other, database, nursery):
    """As `nurseries user disable` does it: every socket of the user is told, and nobody else's."""
    await nursery.start(accounts.service.listen_for_revocations, database.accounts)
    ann, bob = await accounts.identity(), await accounts.identity("bob@example.org")
    sockets, bobs = [Socket(), Socket()], Socket()
    async with (
        accounts.service.watching(ann, sockets[0]),
        accounts.service.watching(ann, sockets[1]),
        accounts.service.watching(bob, bobs),
    ):
        await other.users.disable(ann.email)
        for socket in sockets:
            await socket.wait_told()
            assert socket.reasons == ["user disabled"]
        assert bobs.reasons == []


async def test_logout_and_reuse_elsewhere_count_here(accounts, other, database, nursery):
    """Every way to end a session is announced in the transaction that ends it."""
    await nursery.start(accounts.service.listen_for_revocations, database.accounts)
    ann, socket = await accounts.identity(), Socket()
    async with accounts.service.watching(ann, socket):
        await other.logout(ann)
        await socket.wait_told()
        assert socket.reasons == ["logged out"]
    pair, socket = await accounts.login(registered=True), Socket()
    ann = await accounts.service.authenticate_bearer(pair.access_token)
    await other.refresh(pair.refresh_token)
    async with accounts.service.watching(ann, socket):
        with pytest.raises(InvalidGrant):
            await other.refresh(pair.refresh_token)
        await socket.wait_told()
        assert socket.reasons == ["refresh token used twice"]


async def test_what_ends_while_nobody_listens_is_found(accounts, database, nursery):
    """The connection is lost, a session ends unheard, and counts as soon as it is listened again."""
    await nursery.start(accounts.service.listen_for_revocations, database.accounts)
    ann, socket = await accounts.identity(), Socket()
    async with accounts.service.watching(ann, socket):
        # Without a notice, as if it had been sent between two connections.
        accounts.owner.execute("UPDATE sessions SET revoked_at = now()")
        accounts.value(f"SELECT pg_terminate_backend(pid) {LISTENERS}")
        await socket.wait_told()
        assert socket.reasons == ["the session has ended"]
