"""Looking into a server that runs: what two users share, what has outlived its owner, which tasks live.

    audit.py            the isolation audit of all that users have open, on demand and on a schedule
    sharing.py          its walk: what two owners both reach, and either could change
    roots.py            where the walk begins: requests, sessions, outboxes, and the frames of their tasks
    reach.py            what an object holds
    mentions.py         what a function's code names, imports and assigns
    kinds.py            what can change, what cannot, and what is declared as shared
    infrastructure.py   what users share in the kernel by design
    paths.py            the way from a root to a finding, in words
    orphans.py          what is left of something that has ended
    tasks.py            the live tasks as a tree, with the open sessions and requests

The rest of the kernel runs without it: `nurseries.isolation` is told what the audit found, and counts it.
"""

from nurseries.inspect.audit import Audit, AuditBounds, Report
from nurseries.inspect.infrastructure import KERNEL
from nurseries.inspect.kinds import Infrastructure
from nurseries.inspect.orphans import Orphan, find_orphans, kept_contexts
from nurseries.inspect.roots import open_now, roots_of
from nurseries.inspect.sharing import Finding, TooManyObjects, shared_between
from nurseries.inspect.tasks import live_tasks, nursery_tree

__all__ = [
    "KERNEL",
    "Audit",
    "AuditBounds",
    "Finding",
    "Infrastructure",
    "Orphan",
    "Report",
    "TooManyObjects",
    "find_orphans",
    "kept_contexts",
    "live_tasks",
    "nursery_tree",
    "open_now",
    "roots_of",
    "shared_between",
]
