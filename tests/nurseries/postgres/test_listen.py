"""LISTEN on a connection of its own."""

import pytest
import trio

from nurseries.errors import DatabaseUnavailable
from nurseries.postgres.failures import ConnectionLost
from nurseries.postgres.listen import Notification, listen


async def test_notifications_arrive_in_order_with_their_texts(notes):
    """Whatever a channel is called, and on several of them."""
    async with listen(notes.conninfo, "plain", 'Odd "name"') as notifications:
        pid = notes.admin.info.backend_pid
        notes.outside(
            "SELECT pg_notify('plain', 'one'), pg_notify('Odd \"name\"', 'ü'), pg_notify('other', 'no')"
        )
        notes.outside("SELECT pg_notify('plain', '')")
        assert [await anext(notifications) for _ in range(3)] == [
            Notification("plain", "one", pid),
            Notification('Odd "name"', "ü", pid),
            Notification("plain", "", pid),
        ]


async def test_a_cancelled_wait_loses_nothing(notes):
    """What comes after a wait was given up is there for the next."""
    async with listen(notes.conninfo, "c") as notifications:
        with trio.move_on_after(0.01):
            await anext(notifications)
        notes.outside("SELECT pg_notify('c', 'kept')")
        assert (await anext(notifications)).payload == "kept"


async def test_a_lost_connection_is_told_to_the_listener(notes):
    """The listener learns that it has missed something, rather than waiting for ever."""
    async with listen(notes.conninfo, "c") as notifications:
        ((pid, _),) = notes.sessions()
        notes.outside("SELECT pg_terminate_backend(%s)", pid)
        with pytest.raises(ConnectionLost):
            await anext(notifications)


async def test_the_connection_ends_with_the_block(notes):
    """Nobody goes on listening after the block."""
    async with listen(notes.conninfo, "c"):
        assert len(notes.sessions()) == 1
    while notes.sessions():
        await trio.lowlevel.checkpoint()


async def test_an_unreachable_database_is_said_at_once():
    """Without a connection there is nothing to listen to."""
    with pytest.raises(DatabaseUnavailable):
        async with listen("host=/nowhere", "c"):
            pass
