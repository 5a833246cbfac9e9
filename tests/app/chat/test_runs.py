"""Runs: accepted once, one at a time in a thread, ended once whatever happens."""

import attrs
import pytest
import trio

from app.chat.acceptance import KeyReused, ThreadBusy
from app.chat.recovery import interrupt_orphans
from app.engine.errors import UnknownAgent
from app.errors import InvalidField, NotFound, RateLimited
from nurseries.ids import new_id


async def begun(chat, thread_id):
    """Return when the thread's active run has said its first word, and that word is in the log."""
    with chat.streams.listen(owner_of(chat, thread_id)) as outbox:
        if "message_delta" in chat.types(thread_id):
            return
        while True:
            if any(event.type == "message_delta" for event in await outbox.take()):
                return


def owner_of(chat, thread_id):
    row = chat.house.owner.execute("SELECT user_id::text FROM threads WHERE thread_id = %s", (thread_id,))
    return row.fetchone()[0]


async def test_a_run_tells_its_story_in_order_and_is_stored(chat, user, thread):
    """Queued, started, said, completed; numbered without a gap; both messages kept."""
    accepted = await chat.submit(user, thread, "hello there")
    await accepted.run.done.wait()
    envelopes = chat.envelopes(thread)
    assert [e["type"] for e in envelopes] == [
        "run_queued",
        "agent_started",
        "message_delta",
        "agent_completed",
    ]
    assert [e["seq"] for e in envelopes] == [1, 2, 3, 4]
    assert {e["user_id"] for e in envelopes} == {user}
    assert envelopes[-1]["payload"]["output"] == "hello there"
    assert envelopes[-1]["payload"]["usage"] == {"words": 2}
    assert envelopes[-1]["payload"]["depth"] == 0
    assert chat.messages(thread) == [("user", "hello there", False), ("assistant", "hello there", False)]
    assert chat.status(accepted.run_id) == "completed"


async def test_events_are_published_only_after_they_are_in_the_log(chat, user, thread):
    """Every event that a listener receives can be read from the log at that moment."""
    with chat.streams.listen(user) as outbox:
        accepted = await chat.submit(user, thread)
        seen = []
        while not seen or seen[-1].type != "agent_completed":
            items = await outbox.take()
            assert chat.envelopes(thread)[-1]["seq"] >= items[-1].seq
            seen += items
        assert [event.seq for event in seen] == [1, 2, 3, 4]
        await accepted.run.done.wait()


async def test_runs_of_a_thread_run_one_after_the_other(chat, user, thread):
    """The second waits, says its position, and starts when the first has ended."""
    first = await chat.submit(user, thread, agent="patient")
    await begun(chat, thread)
    second = await chat.submit(user, thread, "second")
    third = await chat.submit(user, thread, "third")
    assert (second.run.position, third.run.position) == (1, 2)
    assert chat.status(second.run_id) == "queued"
    assert await chat.runs.cancel(user, first.run_id)
    await third.run.done.wait()
    ends = [e["run_id"] for e in chat.envelopes(thread) if e["type"] in {"agent_completed", "run_cancelled"}]
    assert ends == [first.run_id, second.run_id, third.run_id]


async def test_threads_do_not_wait_for_each_other(chat, user, house):
    """A run that waits for ever in one thread holds up nothing in another."""
    patient, quick = house.thread(user), house.thread(user)
    await chat.submit(user, patient, agent="patient")
    accepted = await chat.submit(user, quick)
    await accepted.run.done.wait()
    assert chat.status(accepted.run_id) == "completed"


async def test_a_user_runs_a_bounded_number_at_once(chat, user, house):
    """The ninth run of a user waits as queued, in whatever thread, until one ends; another user's starts at once."""
    threads = [house.thread(user) for _ in range(9)]
    runs = [(await chat.submit(user, thread, agent="patient")).run for thread in threads]
    for thread in threads[:8]:
        await begun(chat, thread)
    assert [run.status for run in runs] == ["running"] * 8 + ["queued"]
    other = house.user()
    stranger = await chat.submit(other, house.thread(other))
    await stranger.run.done.wait()
    assert runs[8].status == "queued"
    assert await chat.runs.cancel(user, runs[0].run_id)
    await begun(chat, threads[8])
    assert chat.status(runs[8].run_id) == "running"


async def test_cancel_returns_when_everything_is_released(chat, user, thread):
    """After the cancel: no lease, no open request, the end in the log, what was said kept as partial."""
    accepted = await chat.submit(user, thread, agent="patient")
    await begun(chat, thread)
    assert await chat.runs.cancel(user, accepted.run_id)
    assert chat.kernel.budget.statistics().in_use == 0
    assert chat.kernel.pool.statistics().checked_out == 0
    assert chat.kernel.live.requests == {}
    assert len(chat.runs) == 0
    last = chat.envelopes(thread)[-1]
    assert (last["type"], last["payload"]) == ("run_cancelled", {"reason": "requested"})
    assert chat.status(accepted.run_id) == "cancelled"
    assert chat.messages(thread)[-1] == ("assistant", "begun ", True)
    assert not await chat.runs.cancel(user, accepted.run_id), "a second cancel finds nothing to do"
    assert chat.types(thread).count("run_cancelled") == 1


async def test_a_queued_run_can_be_cancelled(chat, user, thread):
    """It ends without having started, and the active one does not notice."""
    active = await chat.submit(user, thread, agent="patient")
    await begun(chat, thread)
    waiting = await chat.submit(user, thread)
    assert await chat.runs.cancel(user, waiting.run_id)
    assert chat.status(waiting.run_id) == "cancelled"
    assert chat.status(active.run_id) == "running"
    assert chat.house.owner.execute(
        "SELECT started_at FROM runs WHERE run_id = %s", (waiting.run_id,)
    ).fetchone() == (None,)


async def test_nobody_cancels_a_run_of_somebody_else(chat, user, thread, house):
    """To another user the run does not exist."""
    accepted = await chat.submit(user, thread, agent="patient")
    await begun(chat, thread)
    assert not await chat.runs.cancel(house.user(), accepted.run_id)
    assert chat.status(accepted.run_id) == "running"


async def test_reject_refuses_while_a_run_is_active(chat, user, thread):
    """409, and nothing of the refused message is stored."""
    await chat.submit(user, thread, agent="patient")
    await begun(chat, thread)
    with pytest.raises(ThreadBusy):
        await chat.submit(user, thread, "refused", on_conflict="reject")
    assert len(chat.messages(thread)) == 1


async def test_interrupt_cancels_the_active_run_and_keeps_what_it_said(chat, user, thread):
    """The new run goes before those that wait already."""
    active = await chat.submit(user, thread, agent="patient")
    await begun(chat, thread)
    waiting = await chat.submit(user, thread, "waiting")
    urgent = await chat.submit(user, thread, "urgent", on_conflict="interrupt")
    await waiting.run.done.wait()
    ends = [e["run_id"] for e in chat.envelopes(thread) if e["type"] in {"agent_completed", "run_cancelled"}]
    assert ends == [active.run_id, urgent.run_id, waiting.run_id]
    assert ("assistant", "begun ", True) in chat.messages(thread)
    cancelled = next(e for e in chat.envelopes(thread) if e["type"] == "run_cancelled")
    assert cancelled["payload"] == {"reason": "interrupt"}


async def test_rollback_removes_the_messages_of_the_active_run(chat, user, thread):
    """Both what the user asked and what the run said are gone; the event log keeps its history."""
    await chat.submit(user, thread, "to be forgotten", agent="patient")
    await begun(chat, thread)
    accepted = await chat.submit(user, thread, "instead", on_conflict="rollback")
    await accepted.run.done.wait()
    assert chat.messages(thread) == [("user", "instead", False), ("assistant", "instead", False)]
    assert "run_cancelled" in chat.types(thread)


async def test_the_queue_of_a_thread_is_bounded(chat, user, thread):
    """One more than may wait is refused, and stored nowhere."""
    await chat.submit(user, thread, agent="patient")
    for number in range(20):
        await chat.submit(user, thread, f"waiting {number}")
    with pytest.raises(RateLimited):
        await chat.submit(user, thread, "one too many")
    assert len(chat.messages(thread)) == 21


async def test_a_failing_run_ends_as_failed_and_tells_no_secret(chat, user, thread):
    """The user learns a code; the exception's text stays in the log of the server."""
    accepted = await chat.submit(user, thread, agent="broken")
    await accepted.run.done.wait()
    last = chat.envelopes(thread)[-1]
    assert last["type"] == "run_failed"
    assert last["payload"]["code"] == "internal"
    assert "secret" not in str(last)
    assert chat.status(accepted.run_id) == "failed"
    assert chat.messages(thread)[-1] == ("assistant", "half ", True)


async def test_an_agent_cannot_end_the_process(chat, user, thread, house):
    """SystemExit fails that run; another user's run in the same nursery does not notice."""
    other = house.user()
    bystander = await chat.submit(other, house.thread(other), agent="patient")
    accepted = await chat.submit(user, thread, agent="exiting")
    await accepted.run.done.wait()
    assert chat.status(accepted.run_id) == "failed"
    assert not bystander.run.done.is_set()


async def test_the_same_key_starts_one_run(chat, user, thread):
    """A repeat gets the first run's id, while it runs and after; it stores nothing."""
    first = await chat.submit(user, thread, "once", key="k", agent="echo")
    again = await chat.submit(user, thread, "once", key="k", agent="echo")
    await first.run.done.wait()
    later = await chat.submit(user, thread, "once", key="k", agent="echo")
    assert (again.run_id, later.run_id) == (first.run_id, first.run_id)
    assert (first.duplicate, again.duplicate, later.duplicate) == (False, True, True)
    assert len(chat.messages(thread)) == 2


async def test_many_repeats_at_once_start_one_run(chat, user, thread):
    """Twenty tasks send the same message with the same key."""
    accepted = []

    async def send():
        accepted.append(await chat.submit(user, thread, "once", key="k"))

    async with trio.open_nursery() as senders:
        for _ in range(20):
            senders.start_soon(send)
    assert len({answer.run_id for answer in accepted}) == 1
    assert sum(not answer.duplicate for answer in accepted) == 1
    await chat.runs.wait_idle()
    assert len(chat.messages(thread)) == 2


async def test_a_repeat_is_answered_also_where_a_new_message_would_be_refused(chat, user, thread):
    """`reject` and a full queue are about new messages."""
    first = await chat.submit(user, thread, "once", key="k", agent="patient", on_conflict="reject")
    await begun(chat, thread)
    again = await chat.submit(user, thread, "once", key="k", agent="patient", on_conflict="reject")
    assert again.duplicate
    assert again.run_id == first.run_id


async def test_a_key_cannot_stand_for_something_else(chat, user, thread):
    """Same key, other content: refused, and nothing is stored."""
    first = await chat.submit(user, thread, "once", key="k")
    with pytest.raises(KeyReused):
        await chat.submit(user, thread, "something else", key="k")
    await first.run.done.wait()
    assert len(chat.messages(thread)) == 2


async def test_keys_are_per_user(chat, house):
    """Two users with the same key have nothing to do with each other."""
    runs = []
    for _ in range(2):
        user = house.user()
        runs.append(await chat.submit(user, house.thread(user), "mine", key="same"))
    assert not any(run.duplicate for run in runs)


async def test_a_foreign_thread_does_not_exist(chat, user, thread, house):
    """Not even while a run is active in it: no conflict, no queue, only not found."""
    await chat.submit(user, thread, agent="patient")
    stranger = house.user()
    for on_conflict in ("reject", "enqueue", "interrupt", "rollback"):
        with pytest.raises(NotFound):
            await chat.submit(stranger, thread, on_conflict=on_conflict)
    with pytest.raises(NotFound):
        await chat.submit(stranger, new_id())
    assert chat.status((await _active(chat, thread)).run_id) in {"queued", "running"}


async def _active(chat, thread_id):
    return next(run for run in chat.runs if run.context.thread_id == thread_id)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"content": " "}, InvalidField),
        ({"content": "x" * 32_001}, InvalidField),
        ({"agent": "nobody"}, UnknownAgent),
        ({"key": ""}, InvalidField),
        ({"key": "k" * 256}, InvalidField),
    ],
)
async def test_what_cannot_be_run_is_refused_before_it_is_stored(chat, user, thread, fields, error):
    """A clear error, and no trace."""
    with pytest.raises(error):
        await chat.submit(user, thread, **fields)
    assert chat.messages(thread) == []


async def test_deleting_a_thread_ends_its_runs_first(chat, user, thread, house):
    """No run outlives its thread, and other users' threads stay."""
    accepted = await chat.submit(user, thread, agent="patient")
    await begun(chat, thread)
    from app.chat.calls import open_call

    async with open_call(chat.kernel, house.user(), thread_id=thread) as call:
        assert not await chat.runs.delete_thread(call, thread)
    assert not accepted.run.done.is_set()
    async with open_call(chat.kernel, user, thread_id=thread) as call:
        assert await chat.runs.delete_thread(call, thread)
    assert accepted.run.done.is_set()
    assert chat.envelopes(thread) == []
    assert chat.journal.statistics().threads == 0


async def test_runs_without_a_task_end_as_interrupted(chat, user, thread, house):
    """Each gets one last event, numbered after what its thread had; a second round finds nothing."""
    done = await chat.submit(user, thread, "before")
    await done.run.done.wait()
    lost = [new_id() for _ in range(3)]
    for run_id, status in zip(lost, ("running", "queued", "queued"), strict=True):
        house.owner.execute(
            "INSERT INTO runs (run_id, thread_id, user_id, agent, status) VALUES (%s, %s, %s, 'echo', %s)",
            (run_id, thread, user, status),
        )
    orphans = chat.runs, chat.journal, chat.journal_database
    assert await interrupt_orphans(*orphans, min_age_seconds=3600) == 0
    assert await interrupt_orphans(*orphans, min_age_seconds=0) == 3
    envelopes = chat.envelopes(thread)
    assert [e["seq"] for e in envelopes] == list(range(1, 8))
    assert [(e["type"], e["run_id"]) for e in envelopes[4:]] == [
        ("run_interrupted", run_id) for run_id in lost
    ]
    assert {chat.status(run_id) for run_id in lost} == {"interrupted"}
    assert await interrupt_orphans(*orphans, min_age_seconds=0) == 0


async def test_recovery_leaves_alone_what_runs(chat, user, thread):
    """A run that a task of this server runs is not lost, however old it is."""
    accepted = await chat.submit(user, thread, agent="patient")
    await begun(chat, thread)
    assert await interrupt_orphans(chat.runs, chat.journal, chat.journal_database, min_age_seconds=0) == 0
    assert chat.status(accepted.run_id) == "running"


async def test_a_run_whose_owner_ends_is_cancelled_as_disconnected(chat, user, thread):
    """The owner is a socket's nursery; its end is the run's end, logged before the nursery closes."""
    from app.chat.calls import open_call
    from app.chat.run import Ask

    async with trio.open_nursery() as owner:
        async with open_call(chat.kernel, user, thread_id=thread) as call:
            ask = Ask(thread_id=thread, content="hello", agent="patient", on_disconnect="cancel")
            accepted = await chat.runs.submit(call, ask, owner)
        await begun(chat, thread)
        owner.cancel_scope.cancel()
    last = chat.envelopes(thread)[-1]
    assert (last["type"], last["payload"]) == ("run_cancelled", {"reason": "disconnected"})
    assert chat.status(accepted.run_id) == "cancelled"


async def test_nothing_remains_of_runs_that_ended(chat, house):
    """Threads, logs, budgets and listeners are back to none after many runs of many users."""
    for _ in range(10):
        user = house.user()
        thread = house.thread(user)
        for _ in range(3):
            await chat.submit(user, thread)
    await chat.runs.wait_idle()
    assert chat.journal.statistics().threads == 0
    assert chat.journal.statistics().waiting == 0
    assert chat.kernel.budget.statistics().users == 0
    assert chat.kernel.live.requests == {}


async def test_a_run_whose_owner_is_gone_when_it_is_durable_ends_at_once(chat, user, thread):
    """A socket that closes while its message is being committed leaves a run that has ended, and a free thread."""
    active = await chat.submit(user, thread, agent="patient")
    await begun(chat, thread)
    async with trio.open_nursery() as closed:
        pass
    late = attrs.evolve(chat, nursery=closed)
    accepted = await late.submit(user, thread, on_disconnect="cancel", on_conflict="interrupt")
    assert accepted.run.done.is_set()
    assert chat.status(accepted.run_id) == "cancelled"
    story = [e["type"] for e in chat.envelopes(thread) if e["run_id"] == accepted.run_id]
    assert story == ["run_queued", "run_cancelled"]
    assert active.run_id in chat.runs, "nobody is interrupted for somebody who has left"
    assert await chat.runs.cancel(user, active.run_id)
    assert len(chat.runs) == 0
