"""Prometheus text, from a registry that is made for each scrape: nothing is counted twice, nothing is global."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from app.engine.models.cascade import ModelStatistics
    from app.leaks import Leaks
    from app.web.health import Vitals


def exposition(vitals: Vitals) -> tuple[bytes, str]:
    """Return the metrics of this process and their content type."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Vital(vitals))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def rss_bytes() -> int:
    """Return this process's memory in bytes."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123  # one read of a kernel file
        return int(statm.read().split()[1]) * resource.getpagesize()


def process_memory() -> dict[str, int]:
    """Return this process's memory in bytes: now, and at its peak."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rss_bytes": rss_bytes(), "peak_bytes": peak}


class _Vital(Collector):
    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals

    def collect(self) -> Iterator[Any]:
        vitals = self._vitals
        trail = vitals.trail.statistics()
        pool, log = vitals.kernel.pool.statistics(), vitals.journal.statistics()
        yield _gauge("pool_size", "connections that are kept open", pool.size)
        yield _gauge("pool_checked_out", "connections lent now", pool.checked_out)
        yield _gauge("pool_waiting", "requests that wait for a connection", pool.waiting)
        yield _gauge("pool_peak", "most connections lent at once", pool.peak)
        yield _counter("pool_timeouts", "waits that ended without a connection", pool.timeouts)
        yield _counter("pool_waits", "requests that had to wait for a connection", pool.waits)
        yield _gauge("sessions", "open sockets", len(vitals.server.sessions))
        yield _gauge("runs", "runs that have not ended", len(vitals.runs))
        yield _gauge("runs_asking", "runs that wait for a person", vitals.runs.asking)
        yield _gauge("requests", "requests that hold a nursery", len(vitals.kernel.live.requests))
        yield _gauge("listening_users", "users to whose events somebody listens", vitals.streams.users)
        yield _counter("events", "events written to the log", log.events)
        yield _counter("log_batches", "commits of the event log", log.batches)
        yield _counter(
            "log_retries", "commits of the event log that had to wait for the database", log.retries
        )
        yield _gauge("log_apart", "threads whose events wait for a lock that somebody holds", log.apart)
        yield _counter(
            "misdeliveries_prevented",
            "events kept from reaching somebody else",
            vitals.isolation.misdeliveries_prevented,
        )
        yield _counter(
            "isolation_findings", "different pieces of state that two users shared", vitals.isolation.findings
        )
        yield from _models(vitals.models())
        yield from _leaks(vitals.leaks)
        yield _counter("isolation_audits", "isolation audits", vitals.isolation.audits)
        yield _counter(
            "isolation_audits_truncated",
            "isolation audits that did not get through",
            vitals.isolation.truncated,
        )
        yield _gauge("audit_waiting", "entries of the audit trail that are not yet written", trail.waiting)
        yield _counter("audit_entries", "entries of the audit trail that were written", trail.written)
        yield _counter("audit_lost", "security events that could not be kept", trail.lost)
        yield _counter(
            "audit_retries", "times that the audit trail had to wait for the database", trail.retries
        )


def _models(models: Sequence[ModelStatistics]) -> Iterator[Any]:
    answers = CounterMetricFamily(
        "nurseries_model_answers", "answers that a model has begun", labels=["model"]
    )
    failures = CounterMetricFamily(
        "nurseries_model_failures", "tries of a model that failed", labels=["model"]
    )
    for each in models:
        answers.add_metric([each.name], each.answered)
        failures.add_metric([each.name], each.failed)
    yield answers
    yield failures


def _leaks(leaks: Leaks) -> Iterator[Any]:
    """Return what the last round saw: a scrape, which anyone may ask for, looks at no task."""
    created, released, kept = leaks.contexts()
    yield _counter("contexts_created", "contexts made for requests", created)
    yield _counter("contexts_released", "contexts that nobody refers to any more", released)
    yield _gauge("contexts_kept", "contexts whose request has ended", kept)
    last = leaks.last
    if last is not None and leaks.baseline is not None:
        yield _gauge("orphans", "things that have outlived their owner: there should be none", last.orphans)
        yield _gauge("memory_baseline_bytes", "memory to compare with", leaks.baseline.rss_bytes)
        yield _gauge("memory_growth_ratio", "growth over it: 0.1 stands for a tenth", last.growth)
        yield _gauge("memory_growing", "1 if that is a warning", last.growing)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"nurseries_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"nurseries_{name}", text, value=value)
