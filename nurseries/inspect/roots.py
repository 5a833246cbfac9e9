"""Where a look at a user begins: what a request, a session or an outbox is made of, and the tasks that work for it.

Of a task, its frames are roots: what it has in local variables, from the first frame that holds the request down to
where it waits. Above that frame is who called, such as the connection that a request came by, which may serve
several users in turn, or at once (HTTP/2).
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from nurseries.inspect.reach import SUSPENDABLE, awaited
from nurseries.request import Request
from nurseries.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import trio

    from nurseries.events import Outbox


def request_roots(request: Request) -> Iterator[object]:
    """Return the roots of an open request: itself, and of all tasks in it the frames and the context variables."""
    nursery = request.nursery._nursery  # noqa: SLF001  # it leads nowhere for those who run in it
    yield request
    yield from _frames(nursery.parent_task.coro, request)
    yield nursery.parent_task.context
    for task in _tasks(nursery):
        yield task.coro
        yield task.context


def session_roots(session: Session) -> Iterator[object]:
    """Return the roots of an open session: itself, and the frames of its reader, its writer and its requests.

    Its context variables are those that the server began with: what runs in it is ours, and sets none.
    """
    yield session
    if session.tasks is not None:
        yield from _frames(session.tasks.parent_task.coro, session)
        for task in _tasks(session.tasks):
            yield task.coro


def roots_of(thing: object) -> Iterator[object]:
    """Return the roots of whatever a user has open: a request, a session, or an object that speaks for itself."""
    if isinstance(thing, Request):
        yield from request_roots(thing)
    elif isinstance(thing, Session):
        yield from session_roots(thing)
    else:
        yield thing


def open_now(
    requests: Iterable[Request], sessions: Iterable[Session], outboxes: Iterable[Outbox]
) -> dict[str, list[object]]:
    """Return what each user has open."""
    scopes: dict[str, list[object]] = {}
    for request in requests:
        scopes.setdefault(request.context.user_id, []).append(request)
    for session in sessions:
        scopes.setdefault(session.user_id, []).append(session)
    for outbox in outboxes:
        scopes.setdefault(outbox.user_id, []).append(outbox)
    return scopes


def _tasks(nursery: trio.Nursery) -> Iterator[trio.lowlevel.Task]:
    """Return the tasks within a nursery, and within those that its own task opened inside it."""
    task = nursery.parent_task
    nurseries = task.child_nurseries  # in the order of opening
    for inner in nurseries[nurseries.index(nursery) :] if nursery in nurseries else ():
        yield from _all_tasks(inner)


def _all_tasks(nursery: trio.Nursery) -> Iterator[trio.lowlevel.Task]:
    for task in nursery.child_tasks:
        yield task
        for inner in task.child_nurseries:
            yield from _all_tasks(inner)


def _frames(coroutine: Any, owner: object) -> Iterator[object]:
    """Return the first coroutine of a chain of waiting ones that holds `owner`: the walk finds those below it."""
    frame: Any = coroutine
    while isinstance(frame, SUSPENDABLE):
        if any(held is owner for held in gc.get_referents(frame)):
            yield frame
            return
        frame = awaited(frame)
