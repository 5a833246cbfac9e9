"""What is left of something that has ended. There should be nothing: each thing is owned by a task, and ends with it.

    what          the task that owns it
    request       the one that opened it, and whose nursery it is
    lease         of the budget: the request's own, which gives it back at the request's end
    connection    of the pool: a task of an open request of that user, for one unit of work
    session       the one that serves the socket's connection
    outbox        the one that listens: a session's, or that of an answer with server-sent events
    task          the nursery of a request, or of a service; nobody owns a task of the whole process that people's
                  own code starts, as an agent may: it goes on when its request has ended
    context       nobody, once its request has ended: it goes with the last who refers to it

An application has its own list besides, such as runs.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import trio

from nurseries.inspect.kinds import is_library

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nurseries.budgets import Lease
    from nurseries.events import Streams
    from nurseries.request import Kernel
    from nurseries.session import Session

What = Literal["connection", "context", "lease", "outbox", "request", "run", "session", "task"]

HEALTH: Final = "health"
"""Who asks the database whether it answers."""

SERVICES: Final = frozenset({HEALTH})
"""Who borrows connections of the requests' pool without being a user."""


@attrs.frozen
class Orphan:
    """Something without an owner: what it is, and its id, or whose it was."""

    what: What
    name: str


def find_orphans(kernel: Kernel, sessions: Iterable[Session], streams: Streams) -> list[Orphan]:
    """Return what has outlived its owner, at this instant.

    Contexts are not among it: one that is on its way out may be alive for a moment; see `kept_contexts`.
    """
    return [*_requests(kernel), *_leases(kernel), *_sessions(sessions), *_outboxes(streams), *_tasks()]


def kept_contexts(kernel: Kernel) -> set[str]:
    """Return the ids of the requests that have ended while somebody still refers to their context."""
    return set(kernel.live.contexts) - kernel.live.requests.keys()


def _requests(kernel: Kernel) -> Iterator[Orphan]:
    for request_id, request in kernel.live.requests.items():
        if has_ended(request.nursery._nursery.parent_task):  # noqa: SLF001  # as in `roots`
            yield Orphan("request", request_id)


def _leases(kernel: Kernel) -> Iterator[Orphan]:
    """Compare leases with requests, user by user: both are taken and given back in one instant."""
    live = [request.context for request in kernel.live.requests.values()]
    places = Counter(context.user_id for context in live if context.parent_request_id is None)
    for user_id, count in (_borrowers(kernel.budget.leases()) - places).items():
        yield from [Orphan("lease", user_id)] * count
    users = {context.user_id for context in live}
    for borrower, count in _borrowers(kernel.pool.leases()).items():
        if borrower not in users and borrower not in SERVICES:
            yield from [Orphan("connection", borrower)] * count


def _borrowers(leases: Iterable[Lease]) -> Counter[str]:
    return Counter(lease.user_id for lease in leases)


def _sessions(sessions: Iterable[Session]) -> Iterator[Orphan]:
    for session in sessions:
        if session.tasks is not None and has_ended(session.tasks.parent_task):
            yield Orphan("session", session.id)


def _outboxes(streams: Streams) -> Iterator[Orphan]:
    for outbox in streams.outboxes():
        if outbox.owner is not None and has_ended(outbox.owner):
            yield Orphan("outbox", outbox.user_id)


def _tasks() -> Iterator[Orphan]:
    """Look at the tasks beside the main one (`trio.lowlevel.spawn_system_task`); those of libraries are their affair."""
    root = trio.lowlevel.current_root_task()
    for nursery in () if root is None else root.child_nurseries:
        for task in nursery.child_tasks:
            frame = getattr(task.coro, "cr_frame", None)
            if not (_is_main(task) or frame is None or is_library(frame.f_globals["__name__"])):
                yield Orphan("task", task.name)


def _is_main(task: trio.lowlevel.Task) -> bool:
    """Say whether a task is the one that all of the server runs in."""
    above: trio.lowlevel.Task | None = trio.lowlevel.current_task()
    while above is not None and above is not task:
        above = None if above.parent_nursery is None else above.parent_nursery.parent_task
    return above is task


def has_ended(task: trio.lowlevel.Task) -> bool:
    """Say whether a task has come to its end: then its coroutine has no frame any more."""
    coroutine: Any = task.coro
    return getattr(coroutine, "cr_frame", coroutine) is None
