"""What a server tells about itself while it is being measured."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from app.cli.failures import Refused

if TYPE_CHECKING:
    from app.cli.client import Api

# One sample of the Prometheus text format: name, labels or none, value.
_SAMPLE: Final = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^}]*\})? (\S+)", re.MULTILINE)


@attrs.frozen
class Snapshot:
    """The server at one moment; None is what it does not tell."""

    cpu_seconds: float | None = None
    rss_bytes: float | None = None
    pool_peak: float | None = None
    pool_timeouts: float | None = None
    pool_waits: float | None = None


def read_metrics(text: str) -> dict[str, float]:
    """Return the samples of a Prometheus text; those that differ only in their labels are added up."""
    samples: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        samples[name] = samples.get(name, 0.0) + float(value)
    return samples


async def look(api: Api, token: str | None = None) -> Snapshot:
    """Look at the server's metrics; `token` is for servers that show them to administrators only."""
    try:
        samples = read_metrics(await api.text("/metrics", token))
    except Refused:
        return Snapshot()
    return Snapshot(
        samples.get("process_cpu_seconds_total"),
        samples.get("process_resident_memory_bytes"),
        samples.get("nurseries_pool_peak"),
        samples.get("nurseries_pool_timeouts_total"),
        samples.get("nurseries_pool_waits_total"),
    )
