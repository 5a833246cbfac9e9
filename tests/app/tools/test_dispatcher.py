"""Tools that hang, crash, return too much or are asked for nonsense: what happens stays in the call."""

import threading
from typing import Annotated

import attrs
import pytest
import trio
from msgspec import Meta
from structlog.testing import capture_logs

from app.tools.calls import ToolResult
from app.tools.dispatcher import Dispatcher, ToolLimits
from app.tools.failures import ToolCrashed
from app.tools.ledger import Forgetful
from app.tools.schema import Parameters, Tool
from app.tools.threads import ToolThreads
from nurseries.errors import CallerError, PoolExhausted


class Nothing(Parameters, frozen=True):
    """No parameters."""


class Few(Parameters, frozen=True):
    """Two parameters, one of them bounded."""

    words: str
    limit: Annotated[int, Meta(ge=1, le=9)] = 5


def tool(function, *, name="probe", parameters=Nothing, seconds=None):
    return Tool(name, "A tool for a test.", parameters, function, seconds)


@attrs.frozen
class Call:
    call_id: str
    tool: str
    arguments: object = attrs.field(factory=dict)


@pytest.fixture
def dispatching(house):
    """Open a request with a dispatcher for the given tools."""

    def make(request, *tools, threads=None, ledger=None, **limits):
        return Dispatcher(
            tools,
            context=request.context,
            database=request.database,
            events=request.events,
            threads=threads or ToolThreads(),
            limits=ToolLimits(**limits),
            ledger=ledger,
        )

    return make


async def test_a_call_is_told_before_and_after(house, dispatching):
    """The user sees what is called with what, and what came of it."""

    async def echo(_context, parameters):
        return {"words": parameters.words, "limit": parameters.limit}

    async with house.request() as (request, heard):
        result = await dispatching(request, tool(echo, parameters=Few)).call("c1", "probe", {"words": "a b"})
        assert result.ok
        assert result.result == {"words": "a b", "limit": 5}
        assert heard() == [
            ("tool_executing", {"call_id": "c1", "tool": "probe", "arguments": {"words": "a b"}}),
            (
                "tool_completed",
                {
                    "call_id": "c1",
                    "tool": "probe",
                    "ok": True,
                    "milliseconds": result.milliseconds,
                    "result": result.result,
                },
            ),
        ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "`words`"),
        ({"words": "a", "user_id": "somebody"}, "`user_id`"),
        ({"words": 1}, "$.words"),
        ({"words": "a", "limit": 10}, "$.limit"),
        ({"words": "a", "limit": "5"}, "$.limit"),
        ({"words": "a", "limit": True}, "$.limit"),
        ('{"words": ', "must be a JSON object, not str"),
        (["a"], "must be a JSON object, not list"),
        (None, "must be a JSON object"),
        ({1: 2}, "must be text"),
        ({"words": "a" * 1001}, "larger than 1000 bytes"),
    ],
)
async def test_wrong_arguments_are_refused_by_name(house, dispatching, arguments, named):
    """The tool does not run, the model is told which field is wrong, and both events are there."""

    async def never(_context, _parameters):
        raise AssertionError

    async with house.request() as (request, heard):
        dispatcher = dispatching(request, tool(never, parameters=Few), argument_bytes=1000)
        result = await dispatcher.call("c1", "probe", arguments)
        assert not result.ok
        assert named in result.error
        assert [kind for kind, _ in heard()] == ["tool_executing", "tool_completed"]


async def test_an_unknown_tool_is_refused(house, dispatching):
    """A name that a model made up, or of a tool that this agent may not use, fails the call alone."""
    async with house.request() as (request, heard):
        result = await dispatching(request).call("c1", "shell\0" + "x" * 1000, {})
        assert not result.ok
        assert "there is no tool" in result.error
        assert len(result.tool) == 64
        assert [kind for kind, _ in heard()] == ["tool_executing", "tool_completed"]


class Private(Exception):
    """An error whose text nobody outside may read."""


class Refused(CallerError):
    """An error made to be read."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Private("password=hunter2"), "the tool failed: Private"),
        (ExceptionGroup("g", [Private("a"), ValueError("b")]), "the tool failed: Private, ValueError"),
        (Refused("no such city"), "no such city"),
        (PoolExhausted("no connection came free"), "no connection came free"),
        (Refused("\0" + "x" * 5000), "\ufffd" + "x" * 999),
        (Refused(""), "Refused"),
    ],
)
async def test_an_error_fails_the_call(house, dispatching, error, told):
    """What a tool raises ends its call; only what was written for the caller is told in full."""

    async def broken(_context, _parameters):
        raise error

    async with house.request() as (request, heard):
        result = await dispatching(request, tool(broken)).call("c1", "probe", {})
        assert not result.ok
        assert result.error == told
        (_, completed) = heard()
        assert completed[1]["error"] == told
        assert "result" not in completed[1]


class Odd(BaseException):
    """Not an `Exception`."""


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        Odd(),
        BaseExceptionGroup("g", [Odd(), ValueError()]),
    ],
)
@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_a_crash_fails_the_run_and_no_more(house, dispatching, error, kind):
    """SystemExit and its like become an ordinary error of the run, after the call's own end was told."""

    async def crash(_context, _parameters):
        raise error

    def crash_in_thread(_context, _parameters):
        raise error

    async with house.request() as (request, heard):
        dispatcher = dispatching(request, tool(crash if kind == "coroutine" else crash_in_thread))
        with pytest.raises(ToolCrashed) as crashed:
            await dispatcher.call("c1", "probe", {})
        assert isinstance(crashed.value, Exception)
        assert [name for name, _ in heard()] == ["tool_executing", "tool_completed"]


async def test_a_cancellation_from_nowhere_is_a_crash(house, dispatching):
    """A `Cancelled` that a tool kept from another scope does not climb to the root."""
    kept = []

    async def keep(_context, _parameters):
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                kept.append(cancelled)
                raise
        raise kept[0]

    async with house.request() as (request, _):
        # Any exception is caught here: a `Cancelled` that passed would end the test as if it had succeeded.
        with pytest.raises(BaseException) as raised:
            await dispatching(request, tool(keep)).call("c1", "probe", {})
        assert raised.type is ToolCrashed


@pytest.mark.parametrize("seconds", [None, 7.0])
async def test_a_tool_that_hangs_is_ended(house, dispatching, mock_clock, seconds):
    """The time limit ends the call with an error that says so; a tool may have its own limit."""
    released = []

    async def hang(_context, _parameters):
        try:
            await trio.sleep_forever()
        finally:
            released.append(True)

    async with house.request() as (request, heard):
        dispatcher = dispatching(request, tool(hang, seconds=seconds), seconds=30)
        results = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                results.append(await dispatcher.call("c1", "probe", {}))

            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(seconds or 30)
        (result,) = results
        assert released
        assert not result.ok
        assert result.milliseconds == (seconds or 30) * 1000
        assert result.error == f"the tool probe did not answer within {seconds or 30:g} seconds"
        assert heard()[-1] == ("tool_completed", result.payload())


async def test_a_tool_cannot_outlive_its_call(house, dispatching):
    """A child task of a tool ends before the call does."""
    ended = []

    async def child():
        try:
            await trio.sleep_forever()
        finally:
            ended.append(True)

    async def parent(_context, _parameters):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            await trio.testing.wait_all_tasks_blocked()
            raise ValueError

    async with house.request() as (request, _):
        result = await dispatching(request, tool(parent)).call("c1", "probe", {})
        assert result.error == "the tool failed: ValueError"
        assert ended


async def test_a_hundred_megabytes_are_cut(house, dispatching):
    """A result beyond the limit is cut, and says so, in what the model and the user get."""

    async def flood(_context, _parameters):
        return ["x" * 1000] * 100_000

    async with house.request() as (request, heard):
        result = await dispatching(request, tool(flood), result_bytes=64 * 1024).call("c1", "probe", {})
        assert result.ok
        assert result.result["truncated"] is True
        assert result.result["limit_bytes"] == 64 * 1024
        assert 60 * 1024 < sum(map(len, result.result["result"])) <= 64 * 1024
        assert heard()[-1][1]["result"] == result.result


async def test_a_result_without_json_form_fails_the_call(house, dispatching):
    """Bytes, for one, are the tool's mistake; and text that cannot be stored is made storable."""

    async def bad(_context, _parameters):
        return b"bytes"

    async def odd(_context, _parameters):
        return "a\ud83db\0"

    async with house.request() as (request, _):
        dispatcher = dispatching(request, tool(bad), tool(odd, name="odd"))
        assert (await dispatcher.call("c1", "probe", {})).error == "the tool failed: TypeError"
        assert (await dispatcher.call("c2", "odd", {})).result == "a\ufffdb\ufffd"


async def test_cancelling_the_run_ends_the_call_at_once(house, dispatching):
    """A cancelled run's call is released and says nothing more: the end of the run speaks for it."""
    released = []

    async def hang(_context, _parameters):
        try:
            await trio.sleep_forever()
        finally:
            released.append(True)

    async with house.request() as (request, heard):
        dispatcher = dispatching(request, tool(hang))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dispatcher.call_many, [Call("c1", "probe"), Call("c2", "probe")])
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert released == [True, True]
        assert [kind for kind, _ in heard()] == ["tool_executing", "tool_executing"]


async def test_an_error_beside_a_cancellation_does_not_hide_it(house, dispatching):
    """A tool that fails while it is cancelled leaves the run cancelled, not failed; the error is logged."""

    async def child():
        try:
            await trio.sleep_forever()
        finally:
            raise Odd

    async def stubborn(_context, _parameters):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(trio.sleep_forever)

    async with house.request() as (request, _):
        dispatcher = dispatching(request, tool(stubborn))
        with capture_logs() as logs, trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(dispatcher.call, "c1", "probe", {})
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught
        assert [entry["event"] for entry in logs] == ["tool failed while it was cancelled"]


async def test_many_calls_run_at_once_within_the_limit(house, dispatching):
    """Results come in the order of the calls, and no more run together than may."""
    running, most = 0, 0
    gate = trio.Event()

    async def count(_context, parameters):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return parameters.limit

    async with house.request() as (request, _):
        dispatcher = dispatching(request, tool(count, parameters=Few), parallel=3)
        results = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                calls = [Call(f"c{n}", "probe", {"words": "", "limit": n}) for n in range(1, 9)]
                results.extend(await dispatcher.call_many(calls))

            await trio.testing.wait_all_tasks_blocked()
            assert running == 3
            gate.set()
        assert most == 3
        assert [result.result for result in results] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert [result.call_id for result in results] == [f"c{n}" for n in range(1, 9)]


async def test_one_failure_leaves_the_other_calls_alone_and_one_crash_ends_them(house, dispatching):
    """An error is one call's; a crash is the run's, so that its other calls are not waited for."""

    async def broken(_context, _parameters):
        raise ValueError

    async def fine(_context, _parameters):
        return 1

    async def crash(_context, _parameters):
        raise SystemExit

    async with house.request() as (request, heard):
        tools = tool(broken, name="broken"), tool(fine, name="fine"), tool(crash, name="crash")
        dispatcher = dispatching(request, *tools)
        results = await dispatcher.call_many([Call("1", "broken"), Call("2", "fine"), Call("3", "fine")])
        assert [result.ok for result in results] == [False, True, True]
        dispatcher = dispatching(request, *tools, tool(_forever, name="hang"))
        with pytest.raises(ToolCrashed):
            await dispatcher.call_many([Call("4", "hang"), Call("5", "crash"), Call("6", "hang")])
        completed = [payload["call_id"] for kind, payload in heard() if kind == "tool_completed"]
        assert sorted(completed) == ["1", "2", "3", "5"]


async def _forever(_context, _parameters):
    await trio.sleep_forever()


async def test_a_tool_gets_the_context_of_its_request(house, dispatching):
    """Who asks comes from the request, in a thread as well as on the loop."""

    async def who(tool_context, _parameters):
        rows = await tool_context.database.fetch("SELECT app_user_id()::text")
        return [tool_context.context.user_id, rows[0][0]]

    def who_in_thread(asked, _parameters):
        in_thread = threading.current_thread() is not threading.main_thread()
        return [asked.context.user_id, asked.call_id, in_thread]

    async with house.request() as (request, _):
        dispatcher = dispatching(request, tool(who), tool(who_in_thread, name="thread"))
        user_id = request.context.user_id
        assert (await dispatcher.call("1", "probe", {})).result == [user_id, user_id]
        assert (await dispatcher.call("2", "thread", {})).result == [user_id, "2", True]


# -- the ledger ----------------------------------------------------------------------------------------------


async def test_a_call_that_needs_a_person_is_not_made_where_nobody_can_be_asked(house, dispatching):
    """Outside of a run there is no one: the call fails, and says why."""

    async def never(_context, _parameters):
        raise AssertionError

    async with house.request() as (request, heard):
        gated = attrs.evolve(tool(never), approval=True)
        result = await dispatching(request, gated).call("c1", "probe", {})
        assert not result.ok
        assert "needs an approval" in result.error
        assert [kind for kind, _ in heard()] == ["tool_completed"]


class Remembering(Forgetful):
    """A ledger that knows some calls, and notes what it was asked."""

    def __init__(self, ended=(), begun=()):
        self.ended = {result.call_id: result for result in ended}
        self.started = set(begun)
        self.commits = 0

    def result(self, call_id):
        return self.ended.get(call_id)

    def begun(self, call_id, _tool):
        return call_id in self.started

    async def committed(self):
        await trio.lowlevel.checkpoint()
        self.commits += 1


async def test_a_call_that_has_ended_is_not_made_again(house, dispatching):
    """It is answered with what it came to, and nothing is told twice; its neighbour is made."""
    made = []

    async def note(context, _parameters):
        made.append(context.call_id)

    ended = ToolResult("old", "probe", ok=True, milliseconds=7, result="known")
    async with house.request() as (request, heard):
        dispatcher = dispatching(request, tool(note), ledger=Remembering(ended=[ended]))
        results = await dispatcher.call_many([Call("old", "probe"), Call("new", "probe")])
        assert results[0] is ended
        assert made == ["new"]
        assert {payload["call_id"] for _, payload in heard()} == {"new"}


@pytest.mark.parametrize(("repeatable", "made"), [(True, 1), (False, 0)])
async def test_a_call_that_was_cut_off(house, dispatching, repeatable, made):
    """It is made again under its id, or its outcome is unknown: that is for the tool to say."""
    calls = []

    async def note(context, _parameters):
        calls.append(context.call_id)

    async with house.request() as (request, heard):
        probe = attrs.evolve(tool(note), repeatable=repeatable)
        result = await dispatching(request, probe, ledger=Remembering(begun=["c1"])).call("c1", "probe", {})
        assert len(calls) == made
        assert result.ok == repeatable
        assert result.ok or result.error.startswith("outcome unknown")
        assert heard()[-1] == ("tool_completed", result.payload())


@pytest.mark.parametrize("repeatable", [True, False])
async def test_what_must_not_happen_twice_is_known_to_have_begun(house, dispatching, repeatable):
    """A call that cannot be repeated waits until its beginning would survive the server; others need not."""
    ledger, seen = Remembering(), []

    async def note(_context, _parameters):
        await trio.lowlevel.checkpoint()
        seen.append(ledger.commits)

    async with house.request() as (request, _):
        probe = attrs.evolve(tool(note), repeatable=repeatable)
        await dispatching(request, probe, ledger=ledger).call("c1", "probe", {})
    assert seen == [0 if repeatable else 1]
