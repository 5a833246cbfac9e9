"""Testing what is built on nurseries: every schedule, every cancellation, no leak, no waiting.

pytest loads the fixtures of `nurseries.testing.plugin` by itself. The names here are for everywhere else, and
are imported when they are asked for: a run of tests that use none of them pays for none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nurseries.testing.clock import virtual_time
    from nurseries.testing.cluster import Cluster, running_cluster
    from nurseries.testing.isolation import assert_isolated
    from nurseries.testing.ledger import LeaseLedger, lease_ledger
    from nurseries.testing.schedules import Deadlock, Exploration, Trace, explore, replay
    from nurseries.testing.sweep import Sweep, cancel_everywhere

__all__ = [
    "Cluster",
    "Deadlock",
    "Exploration",
    "LeaseLedger",
    "Sweep",
    "Trace",
    "assert_isolated",
    "cancel_everywhere",
    "explore",
    "lease_ledger",
    "replay",
    "running_cluster",
    "virtual_time",
]

_PLACES: Final = {
    "Cluster": "cluster",
    "Deadlock": "schedules",
    "Exploration": "schedules",
    "LeaseLedger": "ledger",
    "Sweep": "sweep",
    "Trace": "schedules",
    "assert_isolated": "isolation",
    "cancel_everywhere": "sweep",
    "explore": "schedules",
    "lease_ledger": "ledger",
    "replay": "schedules",
    "running_cluster": "cluster",
    "virtual_time": "clock",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
