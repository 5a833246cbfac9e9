"""The live task tree of a server that runs: which nursery holds which task, and who owns the sessions and requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nurseries.request import Request
    from nurseries.session import Session

MAX_TASKS: Final = 10_000


def nursery_tree(sessions: Iterable[Session], requests: Iterable[Request]) -> dict[str, Any]:
    """Return the tasks of this process as a tree, and the open sessions and requests with their ages.

    Returns:
        `tree`: a task with its `name` and its `children`; `tasks`: how many there are, at most `MAX_TASKS`;
        `sessions` and `requests`: whose they are, and their age in seconds.
    """
    now, wall = trio.current_time(), datetime.now(UTC)
    counter = _Counter()
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return {
        "tree": counter.describe(root),
        "tasks": counter.count,
        "truncated": counter.count >= MAX_TASKS,
        "sessions": [
            {
                "connection_id": session.id,
                "user_id": session.user_id,
                "age": round(now - session.opened_at, 3),
            }
            for session in sessions
        ],
        "requests": [
            {
                "request_id": context.request_id,
                "run_id": context.run_id,
                "user_id": context.user_id,
                "depth": context.operation_depth,
                "age": round((wall - context.created_at).total_seconds(), 3),
            }
            for context in (request.context for request in requests)
        ],
    }


def live_tasks() -> Iterator[trio.lowlevel.Task]:
    """Return all tasks of this process."""
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        yield task
        for nursery in task.child_nurseries:
            waiting.extend(nursery.child_tasks)


class _Counter:
    """Describes tasks until there are too many to show."""

    def __init__(self) -> None:
        self.count = 0

    def describe(self, task: trio.lowlevel.Task) -> dict[str, Any]:
        self.count += 1
        children = []
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                if self.count >= MAX_TASKS:
                    break
                children.append(self.describe(child))
        return {"name": task.name, "children": children}
