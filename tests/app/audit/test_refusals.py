"""Which refusals become entries, and which do not."""

import attrs
import pytest
import trio

from app.audit.entry import Suspicion
from app.audit.event import MAX_CHARACTERS, finding, misdelivery
from app.audit.refusals import Caller, Refusals
from app.chat.calls import open_call
from app.chat.journal import Journal
from app.chat.run import Ask
from app.chat.runs import Runs
from app.chat.settings import RunSettings
from app.engine.agent import Agent
from app.engine.engine import Catalog, built_in_tools
from app.engine.registry import AgentRegistry
from app.errors import (
    Busy,
    Forbidden,
    InvalidField,
    LoginFailed,
    LoginLimited,
    NotFound,
    RateLimited,
    RegistrationClosed,
    Unauthenticated,
)
from nurseries.budgets import Budget, BudgetLimits
from nurseries.context import UserContext
from nurseries.errors import DatabaseUnavailable, Draining, PoolExhausted, TooManySessions
from nurseries.events import Origin, Streams
from nurseries.ids import new_id
from nurseries.inspect import Finding
from nurseries.postgres.pool import PoolLimits, open_pool
from nurseries.postgres.scoped import Database
from nurseries.request import Failure, Kernel

ANN, THREAD, RUN = new_id(), new_id(), new_id()


@attrs.frozen
class Told:
    """A trail that keeps what it is told."""

    events: list = attrs.field(factory=list)
    suspicions: list[Suspicion] = attrs.field(factory=list)

    def record(self, event):
        self.events.append(event)

    def suspect(self, suspicion):
        self.suspicions.append(suspicion)


@pytest.fixture
def told():
    return Told()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Forbidden("no"), "forbidden"),
        (RateLimited("slow"), "rate_limited"),
        (Busy("busy"), "busy"),
        (TooManySessions("many"), "sockets_limited"),
        (PoolExhausted("none left"), "pool_exhausted"),
        (RegistrationClosed("no"), None),
        (LoginLimited("slow"), None),
        (LoginFailed("no"), None),
        (Unauthenticated("no"), None),
        (InvalidField("a", "b"), None),
        (Draining("later"), None),
        (DatabaseUnavailable("gone"), None),
        (ZeroDivisionError("ours"), None),
    ],
)
def test_each_error_becomes_its_kind(told, error, kind):
    """Limits and what is forbidden; neither what is merely wrong, nor what others tell, nor faults."""
    Refusals(told).tell(error, Caller(user_id=ANN, address="192.0.2.1"), asked="GET /x")
    assert [event.kind for event in told.events] == ([] if kind is None else [kind])
    for event in told.events:
        assert (event.user_id, event.address, event.details["asked"]) == (ANN, "192.0.2.1", "GET /x")


def test_what_is_not_there_is_a_suspicion(told):
    """If somebody asked for ids that could be somebody's."""
    refusals, error = Refusals(told), NotFound("no such thread")
    refusals.tell(error, Caller(user_id=ANN), ids=[THREAD, "no-id", "", THREAD.upper()], asked="subscribe")
    refusals.tell(error, Caller(user_id=ANN), ids=[f"{RUN}_analyse_0123abcd"], asked="approve")
    refusals.tell(error, Caller(user_id=ANN), ids=["no-id"], asked="subscribe")
    refusals.tell(error, Caller(), ids=[THREAD], asked="GET /x")
    assert [(each.ids, each.event.presented_by) for each in told.suspicions] == [
        ((THREAD,), ANN),
        ((RUN,), ANN),
    ]
    assert told.events == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1008, "socket_flooded"),
        (1009, "frame_too_big"),
        (1013, "socket_too_slow"),
        (1000, None),
        (4401, None),
        (None, None),
    ],
)
def test_a_socket_that_is_closed_at_a_limit(told, code, kind):
    """By its code, with whose it was and which."""
    Refusals(told).closed(code, Caller(user_id=ANN, connection_id=RUN))
    assert [(event.kind, event.user_id, event.connection_id) for event in told.events] == (
        [] if kind is None else [(kind, ANN, RUN)]
    )


def test_the_serving_layer_tells_of_addresses(told):
    """A rate and a number of connections."""
    Refusals(told).limited("rate", "192.0.2.1")
    Refusals(told).limited("connections", "192.0.2.1")
    assert [event.kind for event in told.events] == ["rate_limited", "connections_limited"]


def test_what_the_guards_of_isolation_find(told):
    """An event with whose it is and where it was about to go; shared state with both users, and nothing of what is in it."""
    event = Origin.of_ids(ANN, THREAD, RUN).event("message_delta", 7, {"text": "a secret"})
    told.record(misdelivery("connection", event))
    told.record(finding(Finding("item", "builtins.dict", ((ANN, "request.x"), (THREAD, "request.y")))))
    first, second = told.events
    assert (first.kind, first.user_id, first.thread_id, first.run_id) == (
        "misdelivery_prevented",
        ANN,
        THREAD,
        RUN,
    )
    assert first.details == {"seq": 7, "type": "message_delta"}
    assert (second.kind, second.user_id, second.presented_by) == ("isolation_finding", ANN, THREAD)
    assert "secret" not in repr(told.events)


def test_a_long_way_to_shared_state_is_told_by_its_end():
    """There is the variable; the beginning is the way that all runs take."""
    way = "run() > " * 40 + "class attribute notes: list"
    path = finding(Finding("class attribute", "list", ((ANN, way), (THREAD, way)))).details["path"]
    assert len(path) == MAX_CHARACTERS
    assert path.startswith("...")
    assert path.endswith("class attribute notes: list")


class Starved(Agent):
    """Finds no connection."""

    name = "starved"
    description = "Starves."

    async def run(self, request):
        raise PoolExhausted("nothing came free")


async def test_a_run_that_finds_no_connection(told, house, database, nursery):
    """It has no answer that is refused, so its failure is told; that of another fault is not."""
    refusals = Refusals(told)
    refusals.failed(UserContext(user_id=ANN, thread_id=THREAD, run_id=RUN), Failure("internal", "ours"))
    assert told.events == []
    user = house.user()
    thread = house.thread(user)
    async with open_pool(database.journal, PoolLimits(size=1, overflow=0)) as pool:
        journal = Journal(Database(pool, borrower="journal"), Streams())
        kernel = Kernel(house.pool, journal, Budget(BudgetLimits()))
        catalog = Catalog(agents=AgentRegistry([Starved]), tools=built_in_tools())
        runs = Runs(kernel, journal, catalog, RunSettings(), on_failure=refusals.failed)
        await nursery.start(journal.run)
        async with trio.open_nursery() as owner, open_call(kernel, user, thread_id=thread) as call:
            ask = Ask(thread_id=thread, content="x", agent="starved")
            accepted = await runs.submit(call, ask, owner)
            await accepted.run.done.wait()
        nursery.cancel_scope.cancel()
    (event,) = told.events
    assert (event.kind, event.user_id, event.thread_id, event.run_id) == (
        "pool_exhausted",
        user,
        thread,
        accepted.run_id,
    )
