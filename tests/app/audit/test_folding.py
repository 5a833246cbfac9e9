"""Floods are counted: what is told at once, what at the end of a window, and how much is remembered."""

from datetime import UTC, datetime, timedelta

from app.audit.event import MAX_CHARACTERS, MAX_DETAILS, SecurityEvent
from app.audit.folding import Folding

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
ANN, BOB = "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8058"


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def test_the_first_is_told_at_once_and_the_others_together():
    """One entry for the first, one for all that followed, with the times of the first and the last of them."""
    folding = Folding(10)
    event = SecurityEvent("ticket_reused", ANN, address="192.0.2.1")
    first = folding.add(event, at(0))
    assert (first.event, first.count, first.occurred_at, first.last_at) == (event, 1, at(0), at(0))
    for second in range(1, 50):
        assert folding.add(event, at(second)) is None
    assert len(folding) == 49
    (rest,) = folding.turn()
    assert (rest.event, rest.count, rest.occurred_at, rest.last_at) == (event, 49, at(1), at(49))
    assert rest.entry_id != first.entry_id
    assert len(folding) == 0


def test_what_goes_on_is_one_entry_a_window_and_what_stops_is_forgotten():
    """A flood of an hour is sixty entries; after a quiet window the next one is a first again."""
    folding = Folding(10)
    event = SecurityEvent("rate_limited", address="192.0.2.1")
    assert folding.add(event, NOW) is not None
    for _ in range(60):
        for _ in range(100):
            assert folding.add(event, NOW) is None
        assert [entry.count for entry in folding.turn()] == [100]
    assert folding.turn() == []
    assert folding.add(event, NOW) is not None


def test_different_users_and_addresses_are_told_apart():
    """And logins, and the things that are asked for; but not the addresses that one IPv6 subscriber is given."""
    folding = Folding(10)
    assert folding.add(SecurityEvent("login", ANN, address="2001:db8::1"), NOW)
    assert folding.add(SecurityEvent("login", BOB, address="2001:db8::1"), NOW)
    assert folding.add(SecurityEvent("logout", ANN, address="2001:db8::1"), NOW)
    assert folding.add(SecurityEvent("login", ANN, address="2001:db9::1"), NOW)
    assert folding.add(SecurityEvent("login", ANN, BOB, address="2001:db8::1"), NOW)
    assert folding.add(SecurityEvent("login", ANN, session_id=BOB, address="2001:db8::1"), NOW)
    assert folding.add(SecurityEvent("login", ANN, details={"id": BOB}, address="2001:db8::1"), NOW)
    assert folding.add(SecurityEvent("login", ANN, run_id=BOB, address="2001:db8::2"), NOW) is None


def test_several_are_told_by_what_they_have_in_common():
    """What differs is left out, and never told as if it held for all of them."""
    folding = Folding(10)
    for run, address, path in (
        (ANN, "2001:db8::1", "/a"),
        (BOB, "2001:db8::1", "/b"),
        (BOB, "2001:db8::2", "/b"),
    ):
        folding.add(
            SecurityEvent(
                "foreign_id_asked", ANN, BOB, ANN, run_id=run, address=address, details={"path": path, "n": 1}
            ),
            NOW,
        )
    (rest,) = folding.turn()
    assert rest.event == SecurityEvent(
        "foreign_id_asked", ANN, BOB, ANN, run_id=BOB, details={"path": "/b", "n": 1}
    )


def test_what_is_remembered_is_bounded():
    """Beyond so many different events only the kind counts; entries are bounded with it."""
    folding = Folding(100)
    told = [
        folding.add(SecurityEvent("login_failed", address=f"10.0.{n // 250}.{n % 250}"), NOW)
        for n in range(10_000)
    ]
    assert sum(entry is not None for entry in told) == 101
    assert folding.add(SecurityEvent("logout", ANN), NOW) is not None
    assert len(folding._seen) == 102
    (rest,) = folding.turn()
    assert (rest.event, rest.count) == (SecurityEvent("login_failed"), 9_899)


def test_an_event_holds_little_and_only_what_can_be_stored():
    """Whatever a client put into it: few details, short ones, printable."""
    hostile = {f"name{n}": "x\0\ud800é\n" * 1000 for n in range(100)}
    event = SecurityEvent("forbidden", address="\0" * 1000, details={"n": 7, **hostile})
    assert len(event.details) == MAX_DETAILS
    texts = [event.address, *(value for value in event.details.values() if isinstance(value, str))]
    assert all(len(text) <= MAX_CHARACTERS and text.isascii() and text.isprintable() for text in texts)
    assert event.details["n"] == 7
    assert len(event.address) <= 64
    assert SecurityEvent("forbidden", details=event.details) == SecurityEvent(
        "forbidden", details=event.details
    )
