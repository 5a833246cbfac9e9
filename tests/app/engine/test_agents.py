"""What is in reach of an agent, and what becomes of what it says and returns."""

import gc
import types

import pytest
import trio

from app.agents import Answer, agent, converse
from app.chat.journal import Journal
from app.chat.runs import Runs
from app.engine.engine import Catalog
from app.engine.errors import AgentFailed
from app.engine.model import TextPiece
from app.engine.registry import AgentRegistry
from app.engine.request import AgentRequest
from nurseries.budgets import Budget
from nurseries.errors import RequestEnded
from nurseries.events import Emitter, MemoryLog, Streams
from nurseries.postgres.pool import Pool
from nurseries.request import Failure, Kernel, Request
from tests.app.engine.playing import catalog_of, play

# -- what is in reach ------------------------------------------------------------------------------------

NOT_IN_REACH = (
    Pool, Kernel, Streams, Journal, Runs, MemoryLog, Budget, Catalog, AgentRegistry, Request, Emitter,
    trio.Nursery, trio.lowlevel.Task,
)  # fmt: skip


def public(thing):
    """Yield what a thing holds by public names, and what it holds as a container."""
    if isinstance(thing, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", each) for i, each in enumerate(thing))
    elif isinstance(thing, dict | types.MappingProxyType):
        yield from ((f"[{key!r}]", each) for key, each in thing.items())
    else:
        for name in dir(thing):
            if not name.startswith("_"):
                try:
                    yield f".{name}", getattr(thing, name)
                except AttributeError:  # a property may refuse
                    continue


def in_reach(root):
    """Return all objects that public attributes lead to, by the way that leads there."""
    found, waiting = {}, [("request", root)]
    while waiting:
        way, thing = waiting.pop()
        if id(thing) in found or isinstance(thing, (str, bytes, int, float, type, types.ModuleType)):
            continue
        found[id(thing)] = (way, thing)
        # A function's globals, and a method's object, are private by Python's own names for them.
        if not isinstance(thing, (types.FunctionType, types.MethodType, types.BuiltinFunctionType)):
            waiting += [(way + step, held) for step, held in public(thing)]
    return dict(found.values())


async def test_nothing_else_is_in_reach(house):
    """From a request, public attributes lead to what is its own: no infrastructure, no task, no other user."""
    found = {}

    @agent(tools=("clock",), agents=("assistant",))
    async def curious(request):
        """Looks around."""
        found.update(in_reach(request))
        found["gc"] = any(isinstance(thing, Pool) for thing in gc.get_objects())

    async with house.request() as (stranger, _):
        played = await play(house, catalog_of(curious), curious)
        assert played.output == ""
        assert found.pop("gc"), "the pool exists, and a walk without manners would find it"
        assert {name: thing for name, thing in found.items() if isinstance(thing, NOT_IN_REACH)} == {}
        theirs = [stranger, stranger.context, stranger.database, stranger.events, stranger.nursery]
        assert not {id(thing) for thing in theirs} & {id(thing) for thing in found.values()}
    assert {"request.context", "request.database", "request.tools", "request.events", "request.model"} <= set(
        found
    )
    assert "request.nursery" in found


def test_the_public_names_are_these():
    """Whatever is added to a request is in reach of every agent, and has to be looked at."""
    names = {name for name in dir(AgentRequest) if not name.startswith("_")}
    names |= {field.name for field in AgentRequest.__attrs_attrs__ if not field.name.startswith("_")}
    assert names == {
        "context", "database", "tools", "events", "model", "nursery",
        "content", "message_id", "limits", "say", "said", "think", "history", "agents", "delegate", "delegated", "resumed", "checkpoint",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("door", "names"),
    [
        ("nursery", {"start", "start_soon"}),
        ("events", {"emit"}),
        ("model", {"stream"}),
        ("tools", {"add", "call", "call_many", "descriptions"}),
        ("database", {"batch", "close", "execute", "fetch", "fetch_one", "retrying", "transaction"}),
    ],
)
async def test_the_doors_have_these_names(house, door, names):
    """Each of the objects in a request does what it is for, and leads nowhere."""
    found = []

    @agent
    async def curious(request):
        """Looks at one."""
        found.extend(name for name in dir(getattr(request, door)) if not name.startswith("_"))

    await play(house, catalog_of(curious), curious)
    assert set(found) == names


async def test_what_an_agent_kept_is_of_no_use_after_its_run(house):
    """Its database, its events and its nursery have ended with it."""
    kept = []

    @agent
    async def keeper(request):
        """Keeps its request."""
        kept.append(request)

    await play(house, catalog_of(keeper), keeper)
    (request,) = kept
    for use in (request.database.fetch("SELECT 1"), request.say("late"), request.events.emit("a.late", {})):
        with pytest.raises(RequestEnded):
            await use
    with pytest.raises(RuntimeError, match="Nursery is closed"):
        request.nursery.start_soon(trio.sleep, 0)


async def test_a_database_is_its_users_own(house):
    """An agent that asks for all rows, or for another user's, or says to be another user, gets its user's own."""
    stranger = house.context()
    house.message(stranger, "user", "canary")
    rows = {}

    @agent
    async def greedy(request):
        """Asks for everything."""
        database = request.database
        rows["all"] = await database.fetch("SELECT content FROM messages")
        rows["named"] = await database.fetch("SELECT 1 FROM messages WHERE user_id = $1", stranger.user_id)
        async with database.transaction() as tx:
            await tx.fetch("SELECT set_config('app.user_id', $1, true)", stranger.user_id)
        rows["after"] = await database.fetch("SELECT content FROM messages")

    context = house.context()
    house.message(context, "user", "mine")
    await play(house, catalog_of(greedy), greedy, context=context)
    assert rows == {"all": [("mine",)], "named": [], "after": [("mine",)]}


# -- what it says and returns ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "returned", "output"),
    [
        (["one ", "two"], None, "one two"),
        ([], "all", "all"),
        (["one "], "one two", "one two"),
        (["one"], "another", "another"),
        (["one"], Answer("one", {"words": 1}), "one"),
        ([], Answer("from a model"), "from a model"),
        ([], None, ""),
        ([], "a\0b", "a\ufffdb"),
    ],
)
async def test_what_is_returned_is_the_answer(house, said, returned, output):
    """Text, an answer, or what was said; what was not said yet is said, so that a stream shows all of it."""

    @agent
    async def speaker(request):
        """Speaks."""
        for piece in said:
            await request.say(piece)
        return returned

    played = await play(house, catalog_of(speaker), speaker)
    assert played.output == output
    deltas = [e["payload"]["text"] for e in played.envelopes if e["type"] == "message_delta"]
    assert played.said == deltas
    if output != "another":
        assert "".join(deltas) == output


@pytest.mark.parametrize("returned", [5, {"output": "x"}, ["x"], b"x"])
async def test_what_is_no_answer_fails_the_run(house, returned):
    """The user is told that it failed, and not what it was."""

    @agent
    async def confused(request):
        """Returns the wrong thing."""
        return returned

    result = (await play(house, catalog_of(confused), confused)).result
    assert result.code == "invalid_answer"
    assert type(returned).__name__ in result.message


@pytest.mark.parametrize(
    ("output", "usage"),
    [
        (5, {}),
        ("x", {"a": object()}),
        ("x", {1: 1}),
        ("x", dict.fromkeys(map(str, range(33)), 1)),
        ("x", {"a": 10**5000}),  # has no form in JSON: the run's end could not be written
        ("x", {"a": -(2**53) - 1}),
        ("x", {"a": "y" * 201}),
        ("x", {"y" * 201: 1}),
    ],
)
def test_an_answer_is_checked_where_it_is_made(output, usage):
    """What could not be written down later is refused in the agent's own line."""
    with pytest.raises((TypeError, ValueError)):
        Answer(output, usage)


async def test_what_its_tasks_say_is_part_of_the_answer(house):
    """The answer is complete when the agent's own tasks have ended, and not before."""

    @agent
    async def hasty(request):
        """Leaves the rest to a task."""

        async def rest():
            await trio.lowlevel.checkpoint()
            await request.say(" second")

        request.nursery.start_soon(rest)
        await request.say("first")

    assert (await play(house, catalog_of(hasty), hasty)).output == "first second"


async def test_a_task_that_fails_fails_the_run(house):
    """And ends the agent, wherever it is."""

    @agent
    async def parent(request):
        """Waits for ever."""

        async def fail():
            raise ZeroDivisionError

        request.nursery.start_soon(fail)
        await trio.sleep_forever()

    assert (await play(house, catalog_of(parent), parent)).result.code == "internal"


async def test_long_texts_come_in_events_of_bounded_size(house):
    """However much is said at once, no event is too large for a socket."""

    @agent
    async def talker(request):
        """Talks and thinks."""
        await request.say("x" * 100_000)
        await request.think("y" * 100_000)

    played = await play(house, catalog_of(talker), talker)
    assert played.output == "x" * 100_000
    assert max(len(e["payload"]["text"]) for e in played.envelopes) <= 16_384
    assert len(played.envelopes) == 14


@pytest.mark.parametrize("way", ["say", "think", "return"])
async def test_a_talker_without_end_is_stopped(house, way):
    """The bound is on the run, and what was said before stays said."""

    @agent
    async def endless(request):
        """Never stops."""
        if way == "return":
            return "x" * 2000
        while True:
            await (request.say if way == "say" else request.think)("x" * 10)

    played = await play(house, catalog_of(endless, said_characters=1000), endless)
    assert played.result.code == "answer_too_long"
    assert sum(len(e["payload"]["text"]) for e in played.envelopes) == (0 if way == "return" else 1000)


# -- events of its own -----------------------------------------------------------------------------------


async def test_an_agent_tells_events_of_its_own(house):
    """They carry the run's ids like any other, and their number is returned."""
    numbers = []

    @agent
    async def forecaster(request):
        """Tells."""
        numbers.append(await request.events.emit("forecast.ready", {"degrees": 21, "at": b"".decode()}))

    played = await play(house, catalog_of(forecaster), forecaster)
    (event,) = played.envelopes
    assert (event["type"], event["payload"]) == ("forecast.ready", {"degrees": 21, "at": ""})
    assert numbers == [event["seq"]]


@pytest.mark.parametrize(
    ("event_type", "payload", "error"),
    [
        ("agent_completed", {}, ValueError),
        ("run_failed", {}, ValueError),
        ("message_delta", {}, ValueError),
        ("forecast", {}, ValueError),
        ("Forecast.ready", {}, ValueError),
        ("forecast.ready\n", {}, ValueError),
        ("a." + "b" * 63, {}, ValueError),
        ("forecast.ready", {"text": "x" * 70_000}, ValueError),
        ("forecast.ready", {"bytes": b"x"}, TypeError),
        ("forecast.ready", [], TypeError),
    ],
)
async def test_an_agent_cannot_tell_how_a_run_stands(house, event_type, payload, error):
    """The protocol's events are the engine's; what is too large or no JSON is refused."""

    @agent
    async def liar(request):
        """Lies."""
        with pytest.raises(error):
            await request.events.emit(event_type, payload)
        return "caught"

    played = await play(house, catalog_of(liar), liar)
    assert played.output == "caught"
    assert [e["type"] for e in played.envelopes] == ["message_delta"]


# -- sub-agents ------------------------------------------------------------------------------------------


@agent
async def echo(request):
    """Says what it is told."""
    await request.think("hm")
    await request.say(request.content)


@agent
async def failing(request):
    """Fails."""
    await request.say("half")
    raise ZeroDivisionError("a secret")


async def test_a_sub_agent_tells_its_own_story_to_the_same_user(house):
    """Its events carry its own run, the parent's request and its depth, in the parent's thread."""

    @agent(agents=("echo",))
    async def parent(request):
        """Delegates."""
        await request.say("before ")
        answer = await request.delegate("echo", "hello")
        return f"before {answer.output}"

    context = house.context()
    played = await play(house, catalog_of(parent, echo), parent, context=context)
    assert played.output == "before hello"
    assert played.said == ["before ", "hello"]
    assert played.story() == [
        (0, "message_delta", "before "),
        (1, "agent_started", "echo"),
        (1, "agent_thinking", "echo"),
        (1, "message_delta", "hello"),
        (1, "agent_completed", "echo"),
        (0, "message_delta", "hello"),
    ]
    assert [e["seq"] for e in played.envelopes] == [1, 2, 3, 4, 5, 6]
    assert {(e["user_id"], e["thread_id"]) for e in played.envelopes} == {
        (context.user_id, context.thread_id)
    }
    started, _, said, completed = played.envelopes[1:5]
    assert started["run_id"].startswith(f"{context.run_id}_echo_")
    assert started["payload"]["parent_request_id"] == context.request_id
    assert started["payload"]["request_id"] != context.request_id
    assert completed["payload"] == {
        "agent": "echo", "depth": 1, "message_id": said["payload"]["message_id"], "output": "hello", "usage": {},
    }  # fmt: skip
    assert said["payload"]["message_id"] != "m1"


async def test_sub_agents_run_at_the_same_time(house):
    """In tasks of a nursery; each waits for the other here."""
    met = {"a": trio.Event(), "b": trio.Event()}

    @agent
    async def meeting(request):
        """Waits for the other one."""
        met[request.content].set()
        for event in met.values():
            await event.wait()
        return request.content

    @agent(agents=("meeting",))
    async def parent(request):
        """Delegates twice."""
        answers = {}

        async def ask(name):
            answers[name] = (await request.delegate("meeting", name)).output

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "a")
            nursery.start_soon(ask, "b")
        return str(sorted(answers.items()))

    with trio.fail_after(10):
        assert (await play(house, catalog_of(parent, meeting), parent)).output == "[('a', 'a'), ('b', 'b')]"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a secret"), SystemExit(3), KeyboardInterrupt(), trio.BusyResourceError()]
)
async def test_a_sub_agents_failure_stays_with_it(house, error):
    """The user is told, the parent gets an error that it may handle, and what is secret stays so."""

    @agent
    async def broken(request):
        """Breaks."""
        await request.say("half")
        raise error

    @agent(agents=("broken", "echo"))
    async def parent(request):
        """Goes on without."""
        with pytest.raises(AgentFailed) as failed:
            await request.delegate("broken", "x")
        assert (failed.value.agent, failed.value.failure.code) == ("broken", "internal")
        return (await request.delegate("echo", "went on")).output

    played = await play(house, catalog_of(parent, broken, echo), parent)
    assert played.output == "went on"
    (failed,) = [e for e in played.envelopes if e["type"] == "agent_failed"]
    assert failed["payload"] == {
        "agent": "broken", "depth": 1, "code": "internal",
        "message": "The request failed for a reason of ours; it has been logged.",
    }  # fmt: skip
    assert "secret" not in str(played.envelopes)


async def test_a_failure_that_nobody_handles_fails_the_run(house):
    """The run's failure says which agent it was."""

    @agent(agents=("failing",))
    async def parent(request):
        """Handles nothing."""
        await request.delegate("failing", "x")

    result = (await play(house, catalog_of(parent, failing), parent)).result
    assert result == Failure("agent_failed", result.message)
    assert result.message.startswith("the agent failing failed: ")


async def test_a_sub_agent_that_is_too_slow_fails(house, virtual_time):
    """After its time, with all that it started."""
    ended = []

    @agent
    async def slow(request):
        """Takes its time."""

        async def task():
            try:
                await trio.sleep_forever()
            finally:
                ended.append("task")

        request.nursery.start_soon(task)
        await trio.sleep(1000)

    @agent(agents=("slow",))
    async def parent(request):
        """Has no patience."""
        with pytest.raises(AgentFailed, match="did not answer within 5 seconds") as failed:
            await request.delegate("slow", "x", seconds=5)
        assert failed.value.failure.code == "agent_timeout"
        assert ended == ["task"]
        return "on time"

    with trio.fail_after(100):
        assert (await play(house, catalog_of(parent, slow), parent)).output == "on time"


async def test_only_declared_agents_can_be_asked(house):
    """Not even one that exists; nothing is started."""

    @agent(agents=("echo",))
    async def parent(request):
        """Asks for more."""
        await request.delegate("assistant", "x")

    played = await play(house, catalog_of(parent, echo), parent)
    assert played.result.code == "undeclared_agent"
    assert "'assistant'" in played.result.message
    assert played.envelopes == []


async def test_the_number_of_sub_agents_is_bounded(house):
    """Over all depths together; one more fails the agent that asks for it."""

    @agent(agents=("parent", "echo"))
    async def parent(request):
        """Multiplies."""
        depth = request.context.operation_depth
        await request.delegate("echo", "x")
        if depth < 3:
            await request.delegate("parent", "x")
        else:
            while True:
                await request.delegate("echo", "x")

    with trio.fail_after(20):
        played = await play(house, catalog_of(parent, echo, sub_agents=10), parent)
    assert sum(e["type"] == "agent_started" for e in played.envelopes) == 10
    reasons = [e["payload"]["code"] for e in played.envelopes if e["type"] == "agent_failed"]
    assert reasons == ["too_many_agents", "agent_failed", "agent_failed"]


async def test_the_depth_of_sub_agents_is_bounded(house):
    """An agent that asks for itself for ever is stopped; the budget of its user is not what stops it."""

    @agent(agents=("endless",))
    async def endless(request):
        """Asks itself."""
        await request.delegate("endless", "x")

    played = await play(house, catalog_of(endless), endless)
    reasons = [e["payload"]["code"] for e in played.envelopes if e["type"] == "agent_failed"]
    assert reasons == ["depth_exceeded"] + ["agent_failed"] * 7
    assert house.kernel.budget.statistics().peak == 1


async def test_a_sub_agent_reads_its_users_rows_and_conversation(house):
    """The history is the thread's before the run, and nobody else's."""
    stranger = house.context()
    house.message(stranger, "user", "canary")
    first = house.context()
    house.message(first, "user", "one")
    house.message(first, "assistant", "two")

    @agent
    async def reader(request):
        """Reads."""
        rows = await request.database.fetch("SELECT count(*) FROM messages")
        history = [message.content for message in await request.history(10)]
        return f"{rows[0][0]} {history}"

    @agent(agents=("reader",))
    async def parent(request):
        """Asks."""
        return await request.delegate("reader", "x")

    context = house.context(first.user_id, first.thread_id)
    house.message(context, "user", "three")
    played = await play(house, catalog_of(parent, reader), parent, context=context)
    assert played.output == "3 ['one', 'two']"


async def test_each_sub_agent_is_an_instance_of_its_own(house):
    """What one keeps in itself the next one does not see, nor a tool of the one the other."""
    seen = []

    @agent(name="counter", description="Counts.", tools=("calculator",))
    class Counter:
        def __init__(self):
            self.count = 0

        async def run(self, request):
            self.count += 1
            seen.append((self.count, [tool.name for tool in request.tools.descriptions()]))

    @agent(agents=("counter",), tools=("clock",))
    async def parent(request):
        """Asks twice."""
        await request.delegate("counter", "x")
        await request.delegate("counter", "x")
        seen.append([tool.name for tool in request.tools.descriptions()])

    await play(house, catalog_of(parent, Counter), parent)
    assert seen == [(1, ["calculator"]), (1, ["calculator"]), ["clock"]]


async def test_cancelling_the_parent_cancels_its_sub_agents(house):
    """They have ended when it has, and nothing more is told of them."""
    begun, ended = trio.Event(), []

    @agent
    async def waiting(request):
        """Waits."""
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.append(request.context.operation_depth)

    @agent(agents=("waiting",))
    async def parent(request):
        """Waits for it."""
        try:
            await request.delegate("waiting", "x")
        finally:
            ended.append(request.context.operation_depth)

    context = house.context()
    with house.streams.listen(context.user_id) as outbox:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: play(house, catalog_of(parent, waiting), parent, context=context))
            await begun.wait()
            nursery.cancel_scope.cancel()
        assert [event.type for event in outbox.take_nowait()] == ["agent_started"]
    assert ended == [1, 0]
    assert house.kernel.live.requests == {}


async def test_an_agent_may_converse_with_a_prompt_of_its_own(house, scripted):
    """`converse` is the loop that the built-in assistant uses; an agent may do something before and after."""
    model = scripted([TextPiece("Ahoy")])

    @agent(tools=("clock",))
    async def pirate(request):
        """Talks like a pirate."""
        return await converse(request, "You are a pirate.")

    assert (await play(house, catalog_of(pirate, model=lambda: model), pirate, "hello")).output == "Ahoy"
    assert model.told[0].system == "You are a pirate."
    assert [tool.name for tool in model.told[0].tools] == ["clock"]
