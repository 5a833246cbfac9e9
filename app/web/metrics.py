"""Prometheus text, from a registry that is made for each scrape: nothing is counted twice, nothing is global."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.web.health import Vitals


def exposition(vitals: Vitals) -> tuple[bytes, str]:
    """Return the metrics of this process and their content type."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Vital(vitals))
    return generate_latest(registry), CONTENT_TYPE_LATEST


def process_memory() -> dict[str, int]:
    """Return this process's memory in bytes: now, and at its peak."""
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123  # one read of a kernel file
        resident = int(statm.read().split()[1]) * resource.getpagesize()
    return {"rss_bytes": resident, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


class _Vital(Collector):
    def __init__(self, vitals: Vitals) -> None:
        self._vitals = vitals

    def collect(self) -> Iterator[Any]:
        vitals = self._vitals
        pool, log = vitals.kernel.pool.statistics(), vitals.journal.statistics()
        yield _gauge("pool_size", "connections that are kept open", pool.size)
        yield _gauge("pool_checked_out", "connections lent now", pool.checked_out)
        yield _gauge("pool_waiting", "requests that wait for a connection", pool.waiting)
        yield _gauge("pool_peak", "most connections lent at once", pool.peak)
        yield _counter("pool_timeouts", "waits that ended without a connection", pool.timeouts)
        yield _counter("pool_waits", "requests that had to wait for a connection", pool.waits)
        yield _gauge("sessions", "open sockets", len(vitals.server.sessions))
        yield _gauge("runs", "runs that have not ended", len(vitals.runs))
        yield _gauge("requests", "requests that hold a nursery", len(vitals.kernel.live.requests))
        yield _gauge("listening_users", "users to whose events somebody listens", vitals.streams.users)
        yield _counter("events", "events written to the log", log.events)
        yield _counter("log_batches", "commits of the event log", log.batches)
        yield _counter(
            "log_retries", "commits of the event log that had to wait for the database", log.retries
        )
        yield _counter(
            "misdeliveries_prevented",
            "events kept from reaching somebody else",
            vitals.isolation.misdeliveries_prevented,
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"nurseries_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"nurseries_{name}", text, value=value)
