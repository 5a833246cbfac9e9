"""A lock on one user's rows: their events wait for it, in order, and nobody else's do."""

from contextlib import contextmanager

import psycopg
import pytest
import trio.testing

from app.chat.thread_log import LogBroken
from app.store import journal as store
from nurseries.events import Origin
from nurseries.ids import new_id
from nurseries.postgres.scoped import Statement


@pytest.fixture
def locked(database):
    """Holds the row that a thread's events refer to, as a transaction of its user's agent could."""

    @contextmanager
    def lock(thread):
        with psycopg.connect(database.owner) as owner:
            owner.execute("SELECT FROM threads WHERE thread_id = %s FOR UPDATE", (thread,))
            yield owner

    return lock


async def add(chat, origin, *texts):
    for text in texts:
        await chat.journal.append(origin, "agent_thinking", {"text": text})


def texts(chat, thread):
    return [envelope["payload"]["text"] for envelope in chat.envelopes(thread)]


async def test_nobody_elses_events_wait_for_a_lock(chat, house, locked):
    """Those of the same batch are written at once, and so are those that follow."""
    ann, bob = house.user(), house.user()
    held, free = house.thread(ann), house.thread(bob)
    logs = [chat.journal.open(ann, held, 0), chat.journal.open(bob, free, 0)]
    mine, others = Origin.of_ids(ann, held, new_id()), Origin.of_ids(bob, free, new_id())
    with chat.streams.listen(ann) as outbox:
        with locked(held):
            for text in ("one", "two", "three"):
                await add(chat, mine, text)
                await add(chat, others, text)
                with trio.fail_after(60):
                    await chat.journal.committed(others)
                assert chat.journal.statistics().apart == 1
            assert texts(chat, held) == [], "what waits is not in the log"
            assert outbox.take_nowait() == [], "and what is not in the log is not heard"
        await chat.journal.committed(mine)
        assert texts(chat, held) == texts(chat, free) == ["one", "two", "three"]
        assert [event.seq for event in outbox.take_nowait()] == [1, 2, 3]
    assert (chat.journal.statistics().apart, chat.journal.statistics().broken) == (0, 0)
    await add(chat, mine, "four")
    await chat.journal.committed(mine)
    assert texts(chat, held)[-1] == "four"
    for log in logs:
        chat.journal.close(log)


async def test_what_was_added_while_its_batch_was_being_refused_stays_behind_it(
    chat, house, locked, monkeypatch
):
    """It is in the next batch already, and must neither overtake what was refused nor take its place."""
    monkeypatch.setattr(store, "_BOUNDED_WAIT", Statement("SELECT set_config('lock_timeout', '1s', true)"))
    ann, bob = house.user(), house.user()
    held, free = house.thread(ann), house.thread(bob)
    logs = [chat.journal.open(ann, held, 0), chat.journal.open(bob, free, 0)]
    mine, others = Origin.of_ids(ann, held, new_id()), Origin.of_ids(bob, free, new_id())
    with chat.streams.listen(ann) as outbox, trio.fail_after(60):
        with locked(held):
            await add(chat, mine, "one")
            while house.owner.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (0,):
                await trio.testing.wait_all_tasks_blocked()
            await add(chat, mine, "two")
            await add(chat, others, "free")
            await chat.journal.committed(others)
            await add(chat, mine, "three")
            assert texts(chat, held) == []
        await chat.journal.committed(mine)
        assert texts(chat, held) == ["one", "two", "three"]
        assert [event.seq for event in outbox.take_nowait()] == [1, 2, 3]
    assert chat.journal.statistics().waiting == 0
    for log in logs:
        chat.journal.close(log)


async def test_what_waited_for_a_thread_that_is_then_gone_is_told(chat, house, locked):
    """The fault is its own: whoever waits learns of it, nothing is added any more, and nothing waits for ever."""
    ann = house.user()
    thread = house.thread(ann)
    mine = Origin.of_ids(ann, thread, new_id())
    log = chat.journal.open(ann, thread, 0)
    with locked(thread) as holder:
        await add(chat, mine, "first")
        while not chat.journal.statistics().retries:
            await trio.testing.wait_all_tasks_blocked(0.01)
        await add(chat, mine, "more")
        holder.execute("DELETE FROM threads WHERE thread_id = %s", (thread,))
    with pytest.raises(LogBroken):
        await chat.journal.committed(mine)
    with pytest.raises(LogBroken):
        await add(chat, mine, "last")
    statistics = chat.journal.statistics()
    assert (statistics.apart, statistics.broken, statistics.waiting) == (0, 1, 0)
    chat.journal.close(log)
    assert chat.journal.statistics().threads == 0


async def test_a_run_whose_thread_is_locked_ends_when_it_is_free_and_holds_nobody_up(chat, locked):
    """A cancel answers when the end is in the log; others' runs come and go meanwhile."""
    ann, bob = chat.house.user(), chat.house.user()
    held, free = chat.house.thread(ann), chat.house.thread(bob)
    run = (await chat.submit(ann, held, agent="patient")).run
    while "agent_started" not in chat.types(held):
        await chat.journal.settled(ann, held)
    with locked(held):
        run.cancel("cancelled")
        for _ in range(3):
            other = (await chat.submit(bob, free)).run
            await other.done.wait()
            assert chat.status(other.run_id) == "completed"
        assert chat.status(run.run_id) == "running"
    await chat.journal.settled(ann, held)
    assert chat.status(run.run_id) == "cancelled"
    assert chat.types(held)[-1] == "run_cancelled"
    await chat.runs.wait_idle()
