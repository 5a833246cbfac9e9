"""Where the walk of a request and of a session begins, and what is left out above them."""

import logging
from contextvars import ContextVar

import pytest
import trio

from nurseries.budgets import Budget, BudgetLimits
from nurseries.context import UserContext
from nurseries.events import MemoryLog, Streams
from nurseries.ids import new_id
from nurseries.inspect import open_now, roots_of, shared_between
from nurseries.isolation import Isolation
from nurseries.postgres.pool import open_pool
from nurseries.request import Kernel, open_request
from nurseries.session import Session

VARIABLE = ContextVar("variable")
SHELF = logging.getLogger("shelf")  # declared as shared, so that nobody reaches by it what lies there
SHELF.thing = ["a shared list"]


@pytest.fixture
async def kernel(database):
    async with open_pool(database.request) as pool:
        yield Kernel(pool, MemoryLog(Streams()), Budget(BudgetLimits()))


async def hold():
    kept = SHELF.thing  # noqa: F841
    await trio.sleep_forever()


async def in_the_body(request):
    await hold()


async def in_a_child(request):
    request.nursery.start_soon(hold)


async def in_a_childs_child(request):
    async def child():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)

    request.nursery.start_soon(child)


async def in_a_nursery_of_the_body(request):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)


async def in_a_variable_of_the_body(request):
    VARIABLE.set(SHELF.thing)
    await trio.sleep_forever()


async def in_a_variable_of_a_child(request):
    async def child():
        VARIABLE.set(SHELF.thing)
        await trio.sleep_forever()

    request.nursery.start_soon(child)


async def nowhere(request):
    request.nursery.start_soon(trio.sleep_forever)
    await trio.sleep_forever()


async def shared_by_two(kernel, live, *, above=None):
    """Return what two users share while each has a request open in which `live` runs; `above` is held above it."""

    async def serve(name, kept):
        context = UserContext(user_id=name, thread_id=f"{name}-1", run_id=new_id())
        await enter(context)
        del kept

    async def enter(context):
        async with open_request(kernel, context) as request:
            await live(request)

    async with trio.open_nursery() as nursery:
        for name in ("alice", "bob"):
            nursery.start_soon(serve, name, above)
        await trio.testing.wait_all_tasks_blocked()
        scopes = open_now(kernel.live.requests.values(), (), ())
        assert set(scopes) == {"alice", "bob"}
        findings = shared_between({user: roots(things) for user, things in scopes.items()})
        nursery.cancel_scope.cancel()
    return [(each.kind, each.type) for each in findings]


def roots(things):
    return [root for thing in things for root in roots_of(thing)]


@pytest.mark.parametrize(
    ("live", "kind"),
    [
        (in_the_body, "local variable"),
        (in_a_child, "local variable"),
        (in_a_childs_child, "local variable"),
        (in_a_nursery_of_the_body, "local variable"),
        (in_a_variable_of_the_body, "context variable"),
        (in_a_variable_of_a_child, "context variable"),
    ],
)
async def test_all_tasks_of_a_request_are_looked_at(kernel, live, kind):
    """Their local variables and their context variables: of the one that opened it, and of those within."""
    assert await shared_by_two(kernel, live) == [(kind, "list")]


async def test_two_requests_share_nothing_of_themselves(kernel):
    """Their contexts, databases, emitters and nurseries are their own; what they are made from is declared."""
    assert await shared_by_two(kernel, nowhere) == []


async def test_what_is_above_a_request_is_not_its_own(kernel):
    """Whoever called: a connection may serve two users at once."""
    assert await shared_by_two(kernel, nowhere, above=SHELF.thing) == []


class Silent:
    """A socket that brings one frame and then nothing."""

    def __init__(self):
        self.frames = ["a frame"]

    async def receive(self):
        if not self.frames:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return self.frames.pop()

    async def send(self, _frames):
        await trio.lowlevel.checkpoint()

    async def close(self, _code, _reason):
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(("share", "expected"), [(True, [("local variable", "list")]), (False, [])])
async def test_the_frames_of_a_sessions_tasks_are_looked_at(share, expected):
    """What a handler of its frames holds, for example; the session's own parts are its own."""
    streams, isolation = Streams(), Isolation()

    async def on_frame(_session, _frame):
        await (hold if share else trio.sleep_forever)()

    async def serve(name):
        with streams.listen(name) as outbox:
            sessions.append(Session(Silent(), outbox, session_id=name, isolation=isolation))
            await sessions[-1].run(on_frame)

    sessions = []
    async with trio.open_nursery() as nursery:
        for name in ("alice", "bob"):
            nursery.start_soon(serve, name)
        await trio.testing.wait_all_tasks_blocked()
        scopes = open_now((), sessions, streams.outboxes())
        findings = shared_between({user: roots(things) for user, things in scopes.items()})
        nursery.cancel_scope.cancel()
    assert [(each.kind, each.type) for each in findings] == expected
