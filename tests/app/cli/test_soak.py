"""What a soak notices: every kind of fault that it looks for, and a verdict on each figure."""

import io
import json
from uuid import uuid4

import attrs
import pytest
from rich.console import Console

from app.cli.client import open_api
from app.cli.frames import checksum, decode
from app.cli.load import Tally
from app.cli.soak.command import Plan, soak
from app.cli.soak.marks import Marks
from app.cli.soak.report import Memory, SoakReport, print_report, slope_of
from app.cli.soak.tap import Tap, Witness
from nurseries.events import Streams
from tests.fixtures.house import running_server, signed_up
from tests.fixtures.roles import promote

ANN, BOB, THREAD, RUN = (str(uuid4()) for _ in range(4))


@pytest.fixture
def witness():
    marks = Marks()
    for user in (ANN, BOB):
        marks.add(user, user)
    return Witness(ANN, marks, Tally(), marks.canary(ANN))


@pytest.fixture
def tap(witness):
    return Tap(witness)


def event(seq, kind="message_delta", *, user_id=ANN, run_id=RUN, payload=None, **changed):
    """Return an event as it comes over the wire."""
    fields = {
        "type": kind,
        "event_id": f"{THREAD}:{seq}",
        "seq": seq,
        "user_id": user_id,
        "thread_id": THREAD,
        "run_id": run_id,
        "timestamp": "2031-01-01T00:00:00Z",
        "payload": payload or {},
        "delivery_checksum": checksum(user_id, THREAD, run_id),
    }
    raw = json.dumps({**fields, **changed}).encode()
    return decode(raw), raw


def counts(tally):
    return tally.misdelivered, tally.lost, tally.repeated, dict(tally.errors)


def test_events_in_order_are_fine(tap, witness):
    """From wherever a stream begins, and again from a cursor once it is subscribed."""
    for seq in (7, 8, 9):
        tap.take(*event(seq, payload={"text": witness.canary}))
    subscribed = {"type": "subscribed", "thread_id": THREAD, "after": 7, "last_seq": 9, "recovered": True}
    raw = json.dumps(subscribed).encode()
    tap.take(decode(raw), raw)
    for seq in (8, 9, 10):
        tap.take(*event(seq))
    assert counts(witness.tally) == (0, 0, 0, {})
    assert (witness.tally.events, tap.seen(THREAD)) == (6, 10)


def test_a_gap_and_a_repeat_are_counted(tap, witness):
    """A number that is left out, and one that comes twice."""
    tap.expect(THREAD, 0)
    tap.take(*event(3))
    tap.take(*event(3))
    tap.take(*event(4))
    assert counts(witness.tally) == (0, 2, 1, {})


def test_what_is_anothers_is_misdelivered(tap, witness):
    """Their event, their word in one's own event, a checksum that is not of these ids, their socket."""
    canary = witness.marks.canary(BOB)
    tap.take(*event(1, user_id=BOB))
    assert witness.tally.misdelivered >= 1
    before = witness.tally.misdelivered
    tap.take(*event(1, payload={"text": f"so {canary}, said somebody"}))
    assert witness.tally.misdelivered == before + 1
    tap.take(*event(2, delivery_checksum="0" * 16))
    assert witness.tally.misdelivered == before + 2
    raw = json.dumps({"type": "connection_established", "user_id": BOB}).encode()
    tap.take(decode(raw), raw)
    assert witness.tally.misdelivered >= before + 3
    witness.look(canary.encode(), "an answer")
    assert witness.tally.misdelivered >= before + 4
    assert any(canary in example for example in witness.tally.examples)


def test_a_run_ends_once_and_nothing_follows(tap, witness):
    """Also on another stream that is replayed from the beginning."""
    tap.take(*event(1, "run_queued"))
    tap.take(*event(2, "agent_completed", payload={"depth": 0}))
    again = Tap(witness)
    again.take(*event(1, "run_queued"))
    again.take(*event(2, "agent_completed", payload={"depth": 0}))
    assert counts(witness.tally) == (0, 0, 0, {})
    tap.take(*event(3))
    tap.take(*event(4, "run_cancelled"))
    assert counts(witness.tally) == (
        0, 0, 0, {"an event after the end of its run": 1, "a run that ended twice": 1},
    )  # fmt: skip


def test_a_cursor_that_is_not_honoured_is_an_error(tap, witness):
    """Nothing here is pruned."""
    raw = json.dumps(
        {"type": "subscribed", "thread_id": THREAD, "after": 7, "last_seq": 3, "recovered": False}
    ).encode()
    tap.take(decode(raw), raw)
    tap.take(*event(4))
    assert counts(witness.tally) == (0, 0, 0, {"a cursor that was not honoured": 1})


def test_the_slope_is_that_of_the_best_line():
    """By least squares; nothing for a single point."""
    assert slope_of([(0, 5), (1, 7), (2, 9)]) == pytest.approx(2)
    assert slope_of([(0, 0), (1, 2), (2, 1), (3, 3)]) == pytest.approx(0.8)
    assert slope_of([(3, 3)]) == 0
    assert slope_of([]) == 0


def test_memory_is_judged_by_its_second_half():
    """Warming up is no climbing; growing by a tenth of what there is is."""
    warm = [(second, 1e6 * min(100 + 10 * second, 300)) for second in range(100)]
    memory = Memory.of(warm)
    assert (memory.first, memory.last, memory.peak, memory.slope) == (100, 300, 300, 0)
    assert not memory.is_climbing
    climbing = Memory.of([(second, 1e6 * (500 + second)) for second in range(0, 601, 2)])
    assert climbing.slope == pytest.approx(60, rel=0.01)
    assert climbing.grown == pytest.approx(300, rel=0.01)
    assert climbing.is_climbing
    assert not Memory.of([(second, 1e6 * (500 + second / 20)) for second in range(601)]).is_climbing
    assert len(climbing.course) <= 16
    assert not Memory.of([(second, 1e6 * (100 + 10 * second)) for second in range(60)]).is_climbing


GOOD = SoakReport(
    users=2, minutes=1.0, turns=10, events=100, turns_per_second=1.0, completion_ms=None,
    activities={"chat": 10}, errors={}, misdelivered=0, lost=0, repeated=0, examples=[],
    memory=Memory.of([(0, 1e8), (60, 1e8)]), pool={"timeouts": 0, "refused": 0, "peak": 3}, audits=3,
    audited_objects=1000, audits_truncated=0, findings=[], misdeliveries_prevented=0, orphans=0,
    left={"sockets": 0}, log_broken=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({}, []),
        ({"turns": 0}, ["no turns"]),
        ({"errors": {"chat: closed with 1011": 1}}, ["errors"]),
        ({"misdelivered": 1}, ["misdelivered"]),
        ({"lost": 1}, ["lost"]),
        ({"repeated": 1}, ["repeated"]),
        ({"memory": Memory.of([(0, 1e8), (300, 2e8), (600, 4e8)])}, ["memory climbs"]),
        ({"pool": {"timeouts": 1, "refused": 0}}, ["pool timeouts"]),
        ({"audits": 0}, ["no audits"]),
        ({"audits_truncated": 1}, ["audits cut short"]),
        ({"findings": ["dict, held as class attribute"]}, ["isolation findings"]),
        ({"misdeliveries_prevented": 1}, ["misdeliveries prevented"]),
        ({"orphans": 1}, ["orphans"]),
        ({"left": {"sockets": 1}}, ["something was left"]),
        ({"log_broken": 1}, ["threads whose log broke"]),
    ],
)
def test_every_figure_has_a_verdict(changes, bad):
    """And the printed report names it."""
    report = attrs.evolve(GOOD, **changes)
    assert report.bad == bad
    out = io.StringIO()
    print_report(report, Console(file=out, width=200))
    assert out.getvalue().rstrip().endswith(", ".join(bad) or "all is as it should be")


async def small_soak(database, **settings):
    async with running_server(database.owner, **settings) as url, signed_up(url) as admin:
        promote(database, admin)

        async def token():
            return admin.access_token

        async with open_api(url, connections=20) as api:
            return await soak(Plan(url, 3, 4.0, 0.1), api, token, Console(file=io.StringIO()))


async def test_a_server_that_sends_to_everybody_does_not_pass(database, monkeypatch):
    """With the guards of streams and sessions taken away, the users themselves notice."""

    def publish(self, event):
        for outbox in self.outboxes():
            outbox.offer(event)

    monkeypatch.setattr(Streams, "publish", publish)
    guarded = await small_soak(database)
    assert guarded.misdelivered == 0
    assert guarded.misdeliveries_prevented > 0
    assert "misdeliveries prevented" in guarded.bad
    monkeypatch.setattr("nurseries.session.verify", lambda _event, _user_id: None)
    report = await small_soak(database)
    assert report.misdelivered > 0
    assert "misdelivered" in report.bad


async def test_a_small_soak_of_a_sound_server_passes(database):
    """Of what takes longer to show, such as memory, a minute's soak speaks."""
    report = await small_soak(database, janitor_seconds=0.5)
    assert [each for each in report.bad if each != "memory climbs"] == [], report
    assert report.turns > 3
