"""What a soak found out, as JSON and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
from rich.table import Table

from app.cli.report import Latency

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console

    from app.cli.load import Tally
    from app.cli.soak.watch import Watch

GROWTH: Final = 0.10
"""What memory may grow in the second half, beyond which it is not noise."""

FLOOR_BYTES: Final = 16e6
"""What it may grow in any case."""

LEAST_MINUTES: Final = 5.0
"""A shorter soak warms a server up: what it grows by then says nothing."""

SHOWN: Final = 12
"""Points of the memory's course that are printed."""


@attrs.frozen
class Memory:
    """The server's memory over time. Sizes are in MB, the slope is in MB a minute.

    Attributes:
        course: minutes since the beginning, and the memory then.
        slope: of the straight line that fits the second half best (least squares).
        grown: what that slope comes to over the second half.
        minutes: how long it was watched.
    """

    first: float
    last: float
    peak: float
    slope: float
    grown: float
    minutes: float
    course: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float]]) -> Memory:
        """Put together samples of seconds and bytes, at least one."""
        minutes = [(seconds / 60, size / 1e6) for seconds, size in samples]
        half = [sample for sample in minutes if sample[0] >= minutes[-1][0] / 2]
        slope = slope_of(half)
        step = max(1, len(minutes) // SHOWN)
        return cls(
            first=round(minutes[0][1], 1),
            last=round(minutes[-1][1], 1),
            peak=round(max(size for _, size in minutes), 1),
            slope=round(slope, 3),
            grown=round(slope * (half[-1][0] - half[0][0]), 1),
            minutes=round(minutes[-1][0], 2),
            course=tuple((round(at, 2), round(size, 1)) for at, size in minutes[::step]),
        )

    @property
    def is_climbing(self) -> bool:
        """Whether it grew by more than a tenth, and by more than `FLOOR_BYTES`, in the second half of a long soak."""
        is_long = self.minutes >= LEAST_MINUTES
        return is_long and self.grown > max(GROWTH * self.last, FLOOR_BYTES / 1e6)


def slope_of(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line with the least squared distance to the points; 0 for fewer than two."""
    count = len(points)
    mean_x, mean_y = (sum(values) / count for values in zip(*points, strict=True)) if count else (0.0, 0.0)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


@attrs.frozen
class SoakReport:
    """One soak; `bad` names every figure that is not as it should be."""

    users: int
    minutes: float
    turns: int
    events: int
    turns_per_second: float
    completion_ms: Latency | None
    activities: dict[str, int]
    errors: dict[str, int]
    misdelivered: int
    lost: int
    repeated: int
    examples: list[str]
    memory: Memory
    pool: dict[str, Any]
    audits: int
    audited_objects: int
    audits_truncated: int
    findings: list[str]
    misdeliveries_prevented: int
    orphans: int
    left: dict[str, int]
    log_broken: int

    @property
    def bad(self) -> list[str]:
        """What is wrong; nothing, as a rule."""
        checks = {
            "no turns": not self.turns,
            "errors": self.errors,
            "misdelivered": self.misdelivered,
            "lost": self.lost,
            "repeated": self.repeated,
            "memory climbs": self.memory.is_climbing,
            "pool timeouts": self.pool["timeouts"] or self.pool["refused"],
            "no audits": not self.audits,
            "audits cut short": self.audits_truncated,
            "isolation findings": self.findings,
            "misdeliveries prevented": self.misdeliveries_prevented,
            "orphans": self.orphans,
            "something was left": any(self.left.values()),
            "threads whose log broke": self.log_broken,
        }
        return [name for name, wrong in checks.items() if wrong]


def make_report(users: int, seconds: float, tally: Tally, done: dict[str, int], watch: Watch) -> SoakReport:
    """Put together what the users and the server told."""
    status = watch.status
    findings = {
        f"{each.type}, held as {each.kind}: " + "; ".join(each.paths.values())
        for audit in watch.audits
        for each in audit.findings
    }
    return SoakReport(
        users=users,
        minutes=round(seconds / 60, 2),
        turns=tally.turns,
        events=tally.events,
        turns_per_second=round(tally.turns / seconds, 1),
        completion_ms=Latency.of(tally.completion),
        activities=dict(sorted(done.items())),
        errors=dict(tally.errors),
        misdelivered=tally.misdelivered,
        lost=tally.lost,
        repeated=tally.repeated,
        examples=tally.examples,
        memory=Memory.of(watch.memory),
        pool={name: status["pool"][name] for name in ("peak", "waits", "timeouts", "refused", "invalidated")},
        audits=len(watch.audits),
        audited_objects=max((audit.objects for audit in watch.audits), default=0),
        audits_truncated=sum(audit.truncated is not None for audit in watch.audits),
        findings=sorted(findings),
        misdeliveries_prevented=status["isolation"]["misdeliveries_prevented"],
        orphans=watch.orphans,
        left=watch.left(),
        log_broken=status["event_log"]["broken"],
    )


def print_report(report: SoakReport, console: Console) -> None:
    """Show a report to a person."""
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(report):
        table.add_row(name, value)
    console.print(table)
    for line in (*report.examples, *report.findings):
        console.print(f"  {line}", style="red", markup=False, highlight=False)
    bad = report.bad
    verdict = f"not as it should be: {', '.join(bad)}" if bad else "all is as it should be"
    console.print(verdict, style="red" if bad else "green")


def _rows(report: SoakReport) -> Iterator[tuple[str, str]]:
    memory, pool = report.memory, report.pool
    yield "users", f"{report.users} for {report.minutes:.1f} min"
    yield "turns", f"{report.turns}, {report.turns_per_second:.1f} a second; {report.events} events"
    if report.completion_ms is not None:
        latency = report.completion_ms
        yield "completion", f"p50 {latency.p50:.0f} ms, p95 {latency.p95:.0f} ms, p99 {latency.p99:.0f} ms"
    yield "activities", _counts(report.activities)
    yield "errors", _counts(report.errors) or "none"
    yield "misdelivered", f"{report.misdelivered}; prevented by the server: {report.misdeliveries_prevented}"
    yield "lost, repeated", f"{report.lost}, {report.repeated}"
    yield "memory", f"{memory.first} MB at first, {memory.last} MB at last, {memory.peak} MB at most"
    yield "slope", f"{memory.slope} MB a minute over the second half, {memory.grown} MB in all"
    yield "course", ", ".join(f"{at:.1f} min {size:.0f} MB" for at, size in memory.course)
    yield "pool", ", ".join(f"{name} {value}" for name, value in pool.items())
    yield (
        "isolation",
        f"{len(report.findings)} findings in {report.audits} audits of up to {report.audited_objects} objects",
    )
    yield "orphans", f"{report.orphans}"
    yield (
        "left at the end",
        _counts({name: count for name, count in report.left.items() if count}) or "nothing",
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in _by_count(counts))


def _by_count(counts: dict[str, int]) -> Iterable[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])
