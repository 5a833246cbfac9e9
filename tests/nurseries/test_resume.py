"""Exact resumption: whatever the order of publishing, reading and subscribing, each event goes out once, in order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nurseries.context import UserContext
from nurseries.events import Origin
from nurseries.resume import HELD_EVENTS, REMEMBERED_FLOORS, Resume

ORIGINS = {
    thread: Origin.of(UserContext(user_id="u-1", thread_id=thread, run_id="r-1")) for thread in ("t-1", "t-2")
}


def event(seq: int, thread: str = "t-1"):
    return ORIGINS[thread].event("message_delta", seq, {})


def settled() -> Resume:
    resume = Resume()
    resume.settled = True
    return resume


def test_a_session_that_is_new_lets_nothing_live_pass_until_it_settles():
    """Then what waited comes first."""
    resume = Resume()
    assert not resume.admit(event(1))
    assert resume.early() == []
    resume.settled = True
    assert [each.seq for each in resume.early()] == [1]
    assert resume.early() == []
    assert resume.admit(event(2))


def test_a_client_that_subscribes_first_sees_its_missed_events_before_the_new_ones():
    """What came before the subscription is left to the replay, of that thread only."""
    resume = Resume()
    for each in (event(5), event(1, "t-2"), event(6)):
        assert not resume.admit(each)
    resume.hold("t-1")
    assert not resume.admit(event(7))
    assert [each.seq for each in resume.release("t-1", 5)] == [6, 7]
    assert resume.admit(event(8)), "a replayed thread is live although the session is not settled"
    resume.settled = True
    assert [(each.thread_id, each.seq) for each in resume.early()] == [("t-2", 1)]


def test_an_event_taken_before_the_replay_ended_is_not_sent_again():
    """The writer had it in hand while the replay read it from the log."""
    resume = settled()
    resume.hold("t-1")
    resume.release("t-1", 9)
    assert not resume.admit(event(9))
    assert resume.admit(event(10))


def test_a_hold_that_overflows_says_so_once_and_keeps_nothing():
    """What it lost is in the log, and is read from there."""
    resume = settled()
    resume.hold("t-1")
    for seq in range(1, HELD_EVENTS + 3):
        assert not resume.admit(event(seq))
    assert resume.overflowed("t-1")
    assert not resume.overflowed("t-1")
    assert resume.release("t-1", HELD_EVENTS + 2) == []


def test_too_many_early_events_settle_the_session():
    """It waits for a client that subscribes first, but not with unbounded memory."""
    resume = Resume()
    for seq in range(1, HELD_EVENTS + 1):
        assert not resume.admit(event(seq))
    assert resume.settled
    assert len(resume.early()) == HELD_EVENTS


def test_replays_are_remembered_for_a_bounded_number_of_threads():
    """The oldest is forgotten."""
    resume = settled()
    for number in range(REMEMBERED_FLOORS + 10):
        resume.hold(f"t-{number}")
        resume.release(f"t-{number}", 1)
    assert len(resume._floors) == REMEMBERED_FLOORS


@settings(max_examples=500)
@given(
    st.lists(
        st.sampled_from(["commit", "publish", "take", "write", "subscribe", "page", "settle"]), max_size=60
    ),
    st.data(),
)
def test_any_interleaving_delivers_every_event_once_in_order(steps, data):
    """A model of one session: a log, a publisher behind it, a writer with an item in hand, and a replay by pages."""
    resume, sent = Resume(), []
    committed = published = 0
    outbox, in_hand = [], []
    replaying, cursor, after = False, 0, None
    overflow_at = data.draw(st.sampled_from([HELD_EVENTS, HELD_EVENTS, 2]))
    assert overflow_at > 0

    def write(events):
        for each in [*resume.early(), *(item for item in events if resume.admit(item))]:
            sent.append(each.seq)

    for step in [*steps, "publish", *["page"] * 80, "settle", "take", "write", "take", "write"]:
        if step == "commit":
            committed += 1
        elif step == "publish":  # only what is committed is published
            outbox += [event(seq) for seq in range(published + 1, committed + 1)]
            published = committed
        elif step == "take" and not in_hand:
            in_hand, outbox = outbox, []
        elif step == "write":
            write(in_hand)
            in_hand = []
        elif step == "subscribe" and not replaying and after is None:
            after = cursor = data.draw(st.integers(0, committed))
            resume.hold("t-1")
            replaying, last_seq = True, committed
            sent.clear()
        elif step == "page" and replaying:
            page = list(range(cursor + 1, min(committed, cursor + 3) + 1))
            sent += page
            cursor = page[-1] if page else cursor
            if cursor >= last_seq:
                sent += [each.seq for each in resume.release("t-1", cursor)]
                replaying = False
        elif step == "settle" and not replaying:
            resume.settled = True
    first = (after or 0) + 1 if after is not None else (sent[0] if sent else 1)
    assert sent == list(range(first, first + len(sent)))
    assert not sent or sent[-1] == published
    if after is not None:
        assert len(sent) == published - after
