"""The fixtures of a whole server: what a test finds in them, and what they notice."""

import pytest
import trio

from nurseries.testing import replay


@pytest.fixture
def nurseries_settings():
    """Agents of these tests."""
    return {"agents": "tests.app.testing.odd_agents"}


async def begin(user, agent, nursery):
    """Have a run begin that goes on in the background."""

    async def hold(*, task_status):
        async with user.socket() as socket:
            await socket.send(
                type="user_message",
                thread_id=await user.thread(),
                content=f"secret of {user.email}",
                agent=agent,
            )
            await socket.until("message_delta")
            task_status.started()
            await trio.sleep_forever()

    await nursery.start(hold)


async def test_a_server_tells_what_two_of_its_users_share(nurseries_server, nursery):
    """Two runs at work pass as long as each keeps its own; a list in their class is found, and its content not told."""
    async with nurseries_server.user() as ann, nurseries_server.user() as bob:
        for user in (ann, bob):
            await begin(user, "tidy", nursery)
        await nurseries_server.assert_isolated()
        for user in (ann, bob):
            await begin(user, "hoarder", nursery)
        with pytest.raises(AssertionError, match="class attribute kept: list") as failure:
            await nurseries_server.assert_isolated()
        assert "secret" not in str(failure.value)
        nursery.cancel_scope.cancel()


async def test_a_socket_without_anybody_is_refused(nurseries_server):
    """A server's own `socket` says nothing of who it is."""
    with pytest.RaisesGroup(
        pytest.RaisesExc(Exception, match="401"), flatten_subgroups=True, allow_unwrapped=True
    ):
        async with nurseries_server.socket():
            pass


def test_a_house_ends_what_is_asked_in_it(nurseries_house):
    """Cancelling who asks ends the run, and whatever outlives them is waited for; a second house finds it in the log."""

    async def first():
        async with nurseries_house() as house:
            ann, bob = house.user(), house.user()
            with trio.move_on_after(60) as patience:
                await ann.ask("tidy", "hello")
            assert patience.cancelled_caught
            run = await bob.submit("tidy", "hello", house.nursery)
            with trio.move_on_after(60):
                await house.runs.wait_idle()
            assert len(house.runs) == 1
            run.cancel("requested")
        assert len(house.runs) == 0

    async def second():
        async with nurseries_house() as house:
            assert house.rows("SELECT status, count(*) FROM runs GROUP BY status") == [("cancelled", 2)]

    replay(first, seed=0)
    replay(second, seed=0)


async def test_a_house_tells_what_two_of_its_guests_share(nurseries_house):
    """Also in the middle of a schedule, where the look takes no step; what only one of them has at work is nobody else's."""
    async with nurseries_house() as house:
        guests = [house.user(), house.user()]
        async with trio.open_nursery() as nursery:
            for agent, kept in (("tidy", 0), ("hoarder", 1)):
                for guest in guests:
                    with house.pools.streams.listen(guest.user_id) as outbox:
                        await guest.submit(
                            agent, f"secret of {guest.user_id}", nursery, on_conflict="interrupt"
                        )
                        while not any(event.type == "message_delta" for event in await outbox.take()):
                            pass
                    assert len(house.shared()) == (kept if guest is guests[1] else 0)
            with pytest.raises(AssertionError, match="class attribute kept: list") as failure:
                house.assert_isolated()
            assert "secret" not in str(failure.value)
            nursery.cancel_scope.cancel()


async def test_a_failed_run_fails_who_asks(nurseries_house):
    """The assertion has code and message as a user is told, and nothing of the error."""
    async with nurseries_house() as house:
        with pytest.raises(AssertionError, match=r"^internal: The request failed for a reason of ours"):
            await house.user().ask("broken", "hello")
