"""The event log writer: numbers without gaps, faults that stay in their thread, patience with the database."""

import pytest
import trio
import trio.testing

from app.chat.journal import THREAD_EVENTS
from app.chat.thread_log import LogBroken
from nurseries.events import Origin
from nurseries.ids import new_id


def origin(chat, user, thread):
    return Origin.of_ids(user, thread, new_id())


async def test_a_payload_that_cannot_be_encoded_leaves_no_gap(chat, house):
    """The number goes to the next event."""
    user = house.user()
    thread = house.thread(user)
    log = chat.journal.open(user, thread, 0)
    mine = origin(chat, user, thread)
    with pytest.raises((TypeError, UnicodeEncodeError)):
        await chat.journal.append(mine, "agent_thinking", {"text": "\ud800"})
    with pytest.raises(TypeError):
        await chat.journal.append(mine, "agent_thinking", {"text": object()})
    assert (await chat.journal.append(mine, "agent_thinking", {"text": "fine"})).seq == 1
    await chat.journal.committed(mine)
    chat.journal.close(log)
    assert [envelope["seq"] for envelope in chat.envelopes(thread)] == [1]


async def test_a_thread_that_cannot_be_written_stays_alone_with_it(chat, house):
    """Its user's other thread and another user, in the same batch, are written and published."""
    user, other = house.user(), house.user()
    good, stranger, gone = house.thread(user), house.thread(other), new_id()
    logs = [chat.journal.open(*ids, 0) for ids in ((user, good), (other, stranger), (user, gone))]
    with chat.streams.listen(user) as outbox:
        for user_id, thread_id in ((user, gone), (user, good), (other, stranger)):
            await chat.journal.append(origin(chat, user_id, thread_id), "message_delta", {"text": thread_id})
        with pytest.raises(LogBroken):
            await chat.journal.committed(origin(chat, user, gone))
        assert [event.thread_id for event in await outbox.take()] == [good], (
            "what is not in the log is not heard"
        )
    with pytest.raises(LogBroken):
        await chat.journal.append(origin(chat, user, gone), "message_delta", {"text": "more"})
    assert len(chat.envelopes(good)) == len(chat.envelopes(stranger)) == 1
    assert chat.journal.statistics().broken == 1
    for log in logs:
        chat.journal.close(log)


async def test_an_event_of_somebody_elses_thread_cannot_be_written(chat, house):
    """The database refuses a thread with another user's id, whatever this process believes."""
    user, other = house.user(), house.user()
    foreign = house.thread(other)
    log = chat.journal.open(user, foreign, 0)
    await chat.journal.append(origin(chat, user, foreign), "message_delta", {"text": "smuggled"})
    with pytest.raises(LogBroken):
        await chat.journal.committed(origin(chat, user, foreign))
    assert chat.envelopes(foreign) == []
    chat.journal.close(log)


async def test_a_number_that_is_taken_is_a_fault(chat, house):
    """Two writers of one thread are seen; the first one's event stays."""
    user = house.user()
    thread = house.thread(user)
    log = chat.journal.open(user, thread, 0)
    await chat.journal.append(origin(chat, user, thread), "message_delta", {"text": "first"})
    await chat.journal.committed(origin(chat, user, thread))
    chat.journal.close(log)
    log = chat.journal.open(user, thread, 0)
    await chat.journal.append(origin(chat, user, thread), "message_delta", {"text": "second"})
    with pytest.raises(LogBroken):
        await chat.journal.committed(origin(chat, user, thread))
    chat.journal.close(log)
    assert [envelope["payload"]["text"] for envelope in chat.envelopes(thread)] == ["first"]


async def test_the_log_waits_for_a_database_that_comes_back(chat, house):
    """Connections are killed under it: every event is written once, in order, and nobody is told of a failure."""
    user = house.user()
    thread = house.thread(user)
    log = chat.journal.open(user, thread, 0)
    mine = origin(chat, user, thread)
    for number in range(60):
        await chat.journal.append(mine, "agent_thinking", {"text": str(number)})
        if number % 10 == 5:
            house.owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND usename LIKE '%journal%'"
            )
        if number % 3 == 0:
            await chat.journal.committed(mine)
    await chat.journal.committed(mine)
    assert [envelope["payload"]["text"] for envelope in chat.envelopes(thread)] == [str(n) for n in range(60)]
    assert [envelope["seq"] for envelope in chat.envelopes(thread)] == list(range(1, 61))
    chat.journal.close(log)


async def test_a_run_that_is_faster_than_the_log_is_slowed(chat, house):
    """While the log cannot write, a thread holds a bounded number of events, and goes on afterwards."""
    user = house.user()
    thread = house.thread(user)
    log = chat.journal.open(user, thread, 0)
    mine = origin(chat, user, thread)
    sent = 0

    async def talk():
        nonlocal sent
        for _ in range(3 * THREAD_EVENTS):
            await chat.journal.append(mine, "message_delta", {"text": "x"})
            sent += 1

    with house.owner.transaction():
        house.owner.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            while log.uncommitted < THREAD_EVENTS:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert log.uncommitted == THREAD_EVENTS
            assert sent == THREAD_EVENTS
            house.owner.execute("ROLLBACK")
    await chat.journal.committed(mine)
    assert [envelope["seq"] for envelope in chat.envelopes(thread)] == list(range(1, 3 * THREAD_EVENTS + 1))
    chat.journal.close(log)
