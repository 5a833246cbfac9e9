"""What a load run found out, as JSON and for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from app.cli.load import Tally
    from app.cli.observer import Snapshot

UNKNOWN: Final = "unknown"


@attrs.frozen
class Latency:
    """Milliseconds within which half, 95 % and 99 % of the turns came."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency | None:
        """Measure by nearest rank: each figure is one that really occurred. None if there were none."""
        ordered = sorted(seconds)
        if not ordered:
            return None

        def rank(share: float) -> float:
            return round(ordered[math.ceil(share * len(ordered)) - 1] * 1000, 2)

        return cls(rank(0.50), rank(0.95), rank(0.99))


@attrs.frozen
class ServerUse:
    """What the server's process spent, and how its pool fared; None where the server does not tell.

    The database's own processes are not in it.
    """

    cpu_seconds: float | None
    cpu_ms_per_turn: float | None
    rss_bytes_before: float | None
    rss_bytes_after: float | None
    pool_peak: float | None
    pool_timeouts: float | None
    pool_waits: float | None

    @classmethod
    def between(cls, before: Snapshot, after: Snapshot, turns: int) -> ServerUse:
        """Compare two looks at the server with `turns` turns between them."""
        cpu = _difference(before.cpu_seconds, after.cpu_seconds)
        return cls(
            cpu_seconds=cpu,
            cpu_ms_per_turn=round(cpu * 1000 / turns, 3) if cpu is not None and turns else None,
            rss_bytes_before=before.rss_bytes,
            rss_bytes_after=after.rss_bytes,
            pool_peak=after.pool_peak,
            pool_timeouts=_difference(before.pool_timeouts, after.pool_timeouts),
            pool_waits=_difference(before.pool_waits, after.pool_waits),
        )


@attrs.frozen
class Greed:
    """What one greedy user did to the others: their 95th percentile of completion, in milliseconds."""

    runs_at_once: int
    runs: int
    others_p95_without: float | None
    others_p95_with: float | None

    @classmethod
    def between(cls, runs_at_once: int, greedy: Tally, alone: Tally, beside: Tally) -> Greed:
        """Compare the others alone with the others beside the greedy user."""
        without, with_ = Latency.of(alone.completion), Latency.of(beside.completion)
        return cls(runs_at_once, greedy.turns, without.p95 if without else None, with_.p95 if with_ else None)


@attrs.frozen
class Report:
    """One load run. Rates are per second of the time in which turns were played."""

    users: int
    turns: int
    events: int
    seconds: float
    turns_per_second: float
    events_per_second: float
    first_event_ms: Latency | None
    completion_ms: Latency | None
    paced: int
    server: ServerUse
    client_cpu_ms_per_turn: float | None
    greedy: Greed | None = None
    errors: dict[str, int] = attrs.field(factory=dict)
    misdelivered: int = 0
    lost: int = 0
    repeated: int = 0
    examples: list[str] = attrs.field(factory=list)

    def with_faults(self, everyone: Tally) -> Report:
        """Return the report with what went wrong for anybody at any time."""
        return attrs.evolve(
            self,
            errors=dict(everyone.errors),
            misdelivered=everyone.misdelivered,
            lost=everyone.lost,
            repeated=everyone.repeated,
            examples=everyone.examples,
        )

    @property
    def clean(self) -> bool:
        """Whether everything arrived where it belonged, once, and nothing went wrong."""
        return not (self.errors or self.misdelivered or self.lost or self.repeated)


def make_report(tally: Tally, *, users: int, seconds: float, client_cpu: float, server: ServerUse) -> Report:
    """Put together what was counted in the phase that was timed; `with_faults` adds the rest."""
    return Report(
        users=users,
        turns=tally.turns,
        events=tally.events,
        seconds=round(seconds, 3),
        turns_per_second=round(tally.turns / seconds, 1),
        events_per_second=round(tally.events / seconds, 1),
        first_event_ms=Latency.of(tally.first_event),
        completion_ms=Latency.of(tally.completion),
        paced=tally.paced,
        server=server,
        client_cpu_ms_per_turn=round(client_cpu * 1000 / tally.turns, 3) if tally.turns else None,
    )


def print_report(report: Report, console: Console) -> None:
    """Show a report to a person."""
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(report):
        table.add_row(name, value)
    console.print(table)
    for example in report.examples:
        console.print(f"  {example}", style="red", markup=False)


def _rows(report: Report) -> Iterable[tuple[str, str]]:
    server = report.server
    yield "users", f"{report.users}"
    yield "turns", f"{report.turns} in {report.seconds:.2f} s, {report.turns_per_second:.1f} a second"
    yield "events", f"{report.events}, {report.events_per_second:.1f} a second"
    yield "first event", _latency(report.first_event_ms)
    yield "completion", _latency(report.completion_ms)
    if report.greedy is not None:
        greedy = report.greedy
        yield "greedy user", f"{greedy.runs_at_once} runs at once, {greedy.runs} in all"
        yield (
            "others' p95",
            f"{_number(greedy.others_p95_without, ' ms')} without, {_number(greedy.others_p95_with, ' ms')} with",
        )
    yield "errors", ", ".join(f"{count} {what}" for what, count in report.errors.items()) or "none"
    yield "misdelivered", f"{report.misdelivered}"
    yield "lost, repeated", f"{report.lost}, {report.repeated}"
    if report.paced:
        yield "held back", f"{report.paced} messages, to stay within the socket's frames a minute"
    pool = {"peak": server.pool_peak, "timeouts": server.pool_timeouts, "waits": server.pool_waits}
    yield "pool", ", ".join(f"{name} {_number(value)}" for name, value in pool.items())
    yield (
        "server CPU",
        f"{_number(server.cpu_ms_per_turn, ' ms')} a turn, {_number(server.cpu_seconds, ' s')} in all",
    )
    yield (
        "server memory",
        f"{_megabytes(server.rss_bytes_before)} before, {_megabytes(server.rss_bytes_after)} after",
    )
    yield "client CPU", f"{_number(report.client_cpu_ms_per_turn, ' ms')} a turn"


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return UNKNOWN
    return f"p50 {latency.p50:.1f} ms, p95 {latency.p95:.1f} ms, p99 {latency.p99:.1f} ms"


def _number(value: float | None, unit: str = "") -> str:
    return UNKNOWN if value is None else f"{value:g}{unit}"


def _megabytes(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value / 1e6:.1f} MB"


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else round(after - before, 3)
