import io
import math

import attrs
import pytest
from rich.console import Console

from app.cli.bench import Plan, measure
from app.cli.load import BURST_SECONDS, Order, Pace
from app.cli.observer import read_metrics
from app.cli.report import Latency

STRANGER = "00000000-0000-4000-8000-000000000000"


async def bench(server, **changes):
    plan = Plan(url=server.url, users=3, turns=2, pause=0.0, greedy=0, order=Order(5, 2, 64, 0))
    return await measure(attrs.evolve(plan, **changes), None, Console(file=io.StringIO()))


def interfere(server, seq, change):
    """Give the event `seq` of every thread to `change`, which returns the envelopes to send in its place."""

    async def on_event(socket, envelope):
        for sent in change(envelope) if envelope["seq"] == seq else [envelope]:
            await socket.send(**sent)

    server.on_event = on_event


async def test_a_clean_run_is_clean(server):
    """Every turn and every event is counted, and nothing is wrong."""
    report = await bench(server)
    assert report.clean
    assert (report.turns, report.events) == (6, 6 * 8)
    assert report.completion_ms.p50 >= report.first_event_ms.p50 > 0


async def test_an_event_of_a_stranger_is_seen(server):
    """The envelope's user must be the socket's."""
    interfere(server, 4, lambda event: [event, {**event, "user_id": STRANGER}])
    report = await bench(server)
    assert report.misdelivered == 3
    assert not report.clean


async def test_a_text_of_a_stranger_is_seen(server):
    """The canary in the text must be the socket's user, whatever the envelope says."""
    interfere(
        server, 4, lambda event: [{**event, "payload": {"message_id": "m", "text": STRANGER + "x" * 28}}]
    )
    assert (await bench(server)).misdelivered == 3


async def test_a_wrong_checksum_is_seen(server):
    """It must be that of the user, thread and run."""
    interfere(server, 4, lambda event: [{**event, "delivery_checksum": "0" * 16}])
    assert (await bench(server)).misdelivered == 3


async def test_a_thread_of_a_stranger_is_seen(server):
    """An event of a thread that the user does not have is not theirs."""
    interfere(server, 4, lambda event: [event, {**event, "thread_id": STRANGER}])
    assert (await bench(server)).misdelivered == 3


async def test_a_lost_event_is_seen(server):
    """By the hole in the numbers, and the answer is short."""
    interfere(server, 4, lambda _event: [])
    report = await bench(server)
    assert report.lost == 3
    assert report.errors == {"an answer of another length": 3}


async def test_a_repeated_event_is_seen(server):
    """By its number."""
    interfere(server, 4, lambda event: [event, event])
    assert (await bench(server)).repeated == 3


async def test_events_missing_at_the_end_are_seen(server):
    """The log of the server is longer than what was received."""
    original = server.answer_user

    def longer(method, parts, user_id):
        status, answer, headers = original(method, parts, user_id)
        if method == "GET" and len(parts) == 2:
            answer["last_seq"] += 2
        return status, answer, headers

    server.answer_user = longer
    assert (await bench(server)).lost == 6


async def test_an_event_after_the_end_of_its_run_is_seen(server):
    """Nothing may follow the end."""
    interfere(server, 8, lambda event: [event, {**event, "seq": 9, "type": "agent_thinking", "payload": {}}])
    report = await bench(server, turns=1)
    assert report.errors == {"an event after the end of its run": 3}


async def test_a_refused_message_is_an_error(server):
    """It ends its turn, and the others go on."""
    server.errors = ["pool_exhausted"]
    report = await bench(server)
    assert report.errors == {"pool_exhausted": 1}
    assert report.turns == 5


async def test_a_socket_that_closes_is_an_error(server):
    """With its code, and the turn that it took along."""

    async def close(socket, envelope):
        if envelope["seq"] == 4:
            await socket.close(1013)
        elif socket.protocol.close_sent is None:
            await socket.send(**envelope)

    server.on_event = close
    report = await bench(server, users=1)
    assert report.errors == {"the socket was closed with 1013": 1, "no end before the socket was closed": 1}
    assert report.lost == 5  # the log went on


async def test_a_greedy_user_plays_beside_the_others(server):
    """The others play everything twice; the greedy one's faults count too."""
    report = await bench(server, greedy=4)
    assert report.clean
    assert report.turns == 6
    assert report.greedy.runs_at_once == 4
    assert report.greedy.others_p95_with is not None


def test_a_socket_is_kept_within_its_frames_a_minute():
    """A burst goes at once, and then one frame an interval."""
    pace = Pace(600)
    delays = [pace.delay(100.0) for _ in range(103)]
    burst = int(BURST_SECONDS * 10)
    assert delays[:burst] == [0.0] * burst
    assert delays[burst:] == pytest.approx([0.1, 0.2, 0.3])
    assert pace.delay(1000.0) == 0.0


def test_latencies_are_by_nearest_rank():
    """Each figure is a latency that occurred."""
    latency = Latency.of(number / 1000 for number in range(1, 201))
    assert (latency.p50, latency.p95, latency.p99) == (100.0, 190.0, 198.0)
    assert Latency.of([]) is None
    assert math.isclose(Latency.of([0.007]).p99, 7.0)


def test_metrics_are_read_from_the_prometheus_text():
    """Comments are skipped, labels are added up."""
    text = '# HELP a b\na_total{x="1"} 2\na_total{x="2"} 3.5\nprocess_cpu_seconds_total 1.25e+01 1700000000\n'
    assert read_metrics(text) == {"a_total": 5.5, "process_cpu_seconds_total": 12.5}
