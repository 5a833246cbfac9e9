"""What two scopes share, with leaks that are planted on purpose, and with all that may be shared."""

import enum
import functools
import logging
import re
import types
from contextvars import Context, ContextVar, copy_context
from types import MappingProxyType

import attrs
import pytest
import structlog
import trio

from nurseries.frozen import deep_freeze
from nurseries.inspect import KERNEL, TooManyObjects, shared_between
from nurseries.inspect.sharing import MAX_FINDINGS

CACHE = {}
SHELF = types.ModuleType("shelf")
SHELF.books = []
HEARD = ContextVar("heard", default=[])  # noqa: B039
TABLE = MappingProxyType({"a": (1, 2)})
PATTERN = re.compile("a+")


class Quiet:
    """An agent that keeps what it keeps in itself."""

    def __init__(self):
        self.seen = {}
        self.words = ["hello"]
        self.log = structlog.get_logger("quiet")

    def look_up(self, word):
        return TABLE[word], PATTERN.match(word)


class ClassDict:
    seen = {}  # noqa: RUF012


class Inherits(ClassDict):
    pass


class ModuleCache:
    def run(self, key):
        return CACHE.setdefault(key, [])


class NamedModule:
    def run(self, title):
        SHELF.books.append(title)


class Nested:
    def run(self):
        return [lambda: CACHE for _ in range(2)]


class DefaultArgument:
    def run(self, word, said=[]):  # noqa: B006
        said.append(word)


class KeywordDefault:
    def run(self, *, said={}):  # noqa: B006
        return said


class AttrsDefault(attrs.make_class("Base", {"words": attrs.field(default=[])})):
    pass


class Cached:
    @functools.cache  # noqa: B019
    def run(self):
        return object()


class FunctionAttribute:
    def run(self):
        return None

    run.calls = []  # noqa: RUF012


class VariableDefault:
    def run(self):
        return HEARD.get()


class StaticDefault:
    @staticmethod
    def run(said=[]):  # noqa: B006
        return said


class CallsAround:
    def run(self):
        return helper()


def helper():
    return another_helper()


def another_helper():
    return CACHE


def with_closure(kept):
    def remember(word):
        kept.append(word)

    return remember


@attrs.frozen
class Shell:
    inside: object


class Colour(enum.Enum):
    RED = 1


def between(a, b, **options):
    return shared_between({"alice": [a], "bob": [b]}, **options)


@pytest.mark.parametrize(
    ("agent", "kind", "type_"),
    [
        (ClassDict, "class attribute", "dict"),
        (Inherits, "class attribute", "dict"),
        (ModuleCache, "module variable", "dict"),
        (NamedModule, "module variable", "list"),
        (Nested, "module variable", "dict"),
        (CallsAround, "module variable", "dict"),
        (DefaultArgument, "default argument", "list"),
        (KeywordDefault, "default argument", "dict"),
        (AttrsDefault, "attribute", "list"),
        (StaticDefault, "default argument", "list"),
        (Cached, "class attribute", "functools._lru_cache_wrapper"),
        (FunctionAttribute, "attribute", "list"),
        (VariableDefault, "reference", "list"),
    ],
)
def test_what_two_agents_of_a_class_share_is_found(agent, kind, type_):
    """Two fresh instances share what their class, its functions and its module keep."""
    (finding,) = between(agent(), agent())
    assert (finding.kind, finding.type) == (kind, type_)
    assert [owner for owner, _ in finding.paths] == ["alice", "bob"]


def test_agents_that_keep_to_themselves_share_nothing():
    """Their own dicts and lists, a read-only table, a pattern, a logger."""
    assert between(Quiet(), Quiet()) == []


@pytest.mark.parametrize(
    "hide",
    [
        lambda thing: thing,
        lambda thing: (thing,),
        lambda thing: frozenset({thing.append}),
        Shell,
        lambda thing: {"key": thing},
        lambda thing: functools.partial(print, thing),
        lambda thing: functools.partial(print, key=thing),
        lambda thing: MappingProxyType({"key": thing}),
        with_closure,
        lambda thing: thing.append,
        lambda thing: types.SimpleNamespace(thing=thing),
        iter,
        lambda thing: (each for each in [thing]),
    ],
    ids=[
        "bare", "tuple", "frozenset", "frozen", "dict", "partial", "keyword", "proxy", "closure", "method",
        "namespace", "iterator", "generator",
    ],
)  # fmt: skip
def test_a_list_is_found_wherever_it_hides(hide):
    """Inside all that can hold it, also where the two hold it in different ways."""
    shared = ["a word"]
    for other in (hide(shared), shared):
        (finding,) = between(hide(shared), other)
        assert finding.type == "list"


@pytest.mark.parametrize(
    "make", [trio.Event, trio.Lock, lambda: trio.CapacityLimiter(1), trio.CancelScope, bytearray, set]
)
def test_what_two_could_signal_by_is_found(make):
    """An event, a lock, a limiter, a scope, a buffer."""
    shared = make()
    (finding,) = between(types.SimpleNamespace(it=shared), types.SimpleNamespace(it=shared))
    assert finding.kind == "attribute"


def test_the_two_ends_of_a_channel_are_found():
    """A queue between two users' agents, although neither holds the other's end."""
    send, receive = trio.open_memory_channel(1)
    assert {finding.type.rpartition(".")[2] for finding in between(send, receive)} == {"MemoryChannelState"}


@pytest.mark.parametrize(
    "harmless",
    [
        "text", 3, None, Colour.RED, Quiet, types, PATTERN, TABLE, (1, ("a", b"b")), frozenset({1}), object(),
        logging.getLogger("x"), structlog.get_logger("x"), deep_freeze({"a": [1, {"b": {2}}]}, "x"), len, Shell("a"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_cannot_change_may_be_shared(harmless):
    """Values, types, modules, read-only tables, and loggers, which are declared."""
    assert between([harmless], [harmless]) == []


def test_an_empty_dict_is_a_finding_and_a_marker_is_none():
    """Both hold nothing; but a dict is there to be filled."""

    class Marker:
        pass

    marker, table = Marker(), {}
    assert between([marker], [marker]) == []
    assert [finding.type for finding in between([table], [table])] == ["dict"]
    marker.note = "something"
    assert [finding.type.rpartition(".")[2] for finding in between([marker], [marker])] == ["Marker"]


def test_what_stands_for_something_else_is_not_asked():
    """A proxy may answer with an error, or with an effect, to whatever it is asked."""

    class Proxy:
        def __init__(self):
            self.asked = []

        @property
        def __class__(self):
            raise RuntimeError("outside of any call")

        def __getattr__(self, name):
            raise RuntimeError("outside of any call")

    class Touchy:
        __slots__ = ("kept",)

        def __getattr__(self, name):
            raise RuntimeError("asked")

    proxy, touchy = Proxy(), Touchy()
    touchy.kept = []
    assert between([proxy], [proxy]) == []
    assert [finding.kind for finding in between([touchy], [touchy])] == ["item"]
    assert [finding.kind for finding in between((touchy.kept,), touchy)] == ["attribute"]


def test_what_is_declared_may_be_shared():
    """By type, subclasses included, or by identity; and nothing behind it is looked at."""

    class Pool:
        def __init__(self):
            self.lent = {}

    class BigPool(Pool):
        pass

    for pool in (Pool(), BigPool()):
        assert between([pool], [pool]) != []
        assert between([pool], [pool], infrastructure=KERNEL.and_also(types=[Pool])) == []
        assert between([pool], [pool], infrastructure=KERNEL.and_also(objects=[pool])) == []
        assert between([Pool()], [pool.lent], infrastructure=KERNEL.and_also(objects=[pool])) == []
        assert between([pool.lent], [pool.lent], infrastructure=KERNEL.and_also(types=[Pool])) != []


def test_code_that_is_installed_is_looked_into_only_where_it_is_declared(monkeypatch):
    """A library's own class attributes are its affair; those of installed agents are not."""
    module = types.ModuleType("installed")
    module.__file__ = "/usr/lib/python3/dist-packages/installed.py"
    monkeypatch.setitem(__import__("sys").modules, "installed", module)
    monkeypatch.setattr(ClassDict, "__module__", "installed")
    assert between(ClassDict(), ClassDict()) == []
    assert between(ClassDict(), ClassDict(), infrastructure=KERNEL.and_also(code={"installed"})) != []


async def test_what_waiting_tasks_hold_in_local_variables_is_found(autojump_clock):
    """In the frame itself, in one that it awaits, in an async generator that it iterates, as what it waits for."""

    async def plainly(shared):
        kept = shared  # noqa: F841
        await trio.sleep_forever()

    async def below(shared):
        await plainly((shared,))

    async def pieces(shared):
        try:
            yield 1
            await trio.sleep_forever()
            yield shared
        finally:
            pass

    async def iterating(shared):
        async for _ in pieces(shared):
            pass

    async def waiting(event):
        wait, event = event.wait, None
        await wait()

    for function, shared, kind in (
        (plainly, [1], "local variable"),
        (below, [1], "local variable"),
        (iterating, [1], "local variable"),
        (waiting, trio.Event(), "attribute"),  # of the method that it waits in
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(function, shared)
            nursery.start_soon(function, shared)
            await trio.testing.wait_all_tasks_blocked()
            alice, bob = (task.coro for task in nursery.child_tasks)
            (finding,) = between(alice, bob)
            assert finding.kind == kind
            nursery.cancel_scope.cancel()


def test_a_context_variable_that_two_tasks_inherit_is_found():
    """Contexts are copied when tasks start; what is in them is not."""
    variable = ContextVar("variable")
    parent = Context()
    parent.run(variable.set, {})
    (finding,) = between(parent.run(copy_context), parent.run(copy_context))
    assert (finding.kind, finding.type) == ("context variable", "dict")
    assert "context variable variable" in finding.paths[0][1]


async def test_the_locals_of_infrastructure_are_its_own(autojump_clock):
    """The event that a batch's writers all wait for is the writer's; what they called it with is theirs."""

    class Journal:
        def __init__(self):
            self.committed = trio.Event()

        async def append(self, line):
            await self.committed.wait()

    journal, note = Journal(), ["note"]

    async def write(_line, secret):
        await journal.append("a line")
        return secret

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, [1], None)
        nursery.start_soon(write, [2], None)
        nursery.start_soon(write, [3], note)
        nursery.start_soon(write, [4], note)
        await trio.testing.wait_all_tasks_blocked()
        tasks = sorted(nursery.child_tasks, key=lambda task: task.coro.cr_frame.f_locals["_line"])
        first, second, third, fourth = (task.coro for task in tasks)
        declared = KERNEL.and_also(types=[Journal])
        assert {finding.type.rpartition(".")[2] for finding in between(first, second)} == {"Journal", "Event"}
        assert between(first, second, infrastructure=declared) == []
        assert [finding.type for finding in between(third, fourth, infrastructure=declared)] == ["list"]
        nursery.cancel_scope.cancel()


async def test_users_code_below_infrastructure_is_looked_into(autojump_clock):
    """What runs others' code, as the runs' service does, hides none of it."""

    class Runs:
        async def execute(self, function, *args):
            await function(*args)

    runs = Runs()

    async def agent(shared):
        kept = shared  # noqa: F841
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        shared = [1]
        nursery.start_soon(runs.execute, agent, shared)
        nursery.start_soon(runs.execute, agent, shared)
        await trio.testing.wait_all_tasks_blocked()
        alice, bob = (task.coro for task in nursery.child_tasks)
        (finding,) = between(alice, bob, infrastructure=KERNEL.and_also(types=[Runs]))
        assert finding.type == "list"
        assert "local kept" in finding.paths[0][1] or "local shared" in finding.paths[0][1]
        nursery.cancel_scope.cancel()


def test_a_finding_says_where_it_is_and_never_what_it_holds():
    """Attributes and types, and no key, value or text of anybody."""
    secret = "alice's password"
    shared = {secret: [secret]}
    first, second = types.SimpleNamespace(diary={secret: shared}), {secret: shared}
    (finding,) = between(first, second)
    text = str(finding)
    assert secret not in text
    assert dict(finding.paths) == {
        "alice": "SimpleNamespace > .diary: dict > value: dict",
        "bob": "dict > value: dict",
    }


def test_one_hole_is_one_finding_for_any_number_of_users():
    """The first two who share it are named; what lies below it is part of it."""
    shared = [[[], []], {}]
    scopes = {f"user-{number}": [types.SimpleNamespace(it=shared)] for number in range(50)}
    assert len(shared_between(scopes)) == 1


def test_an_owner_may_reach_a_thing_by_many_ways():
    """Two requests of one user share what they like."""
    shared = []
    assert shared_between({"alice": [[shared], (shared, [shared])], "bob": []}) == []


def test_findings_are_bounded():
    """Different holes, more than anybody reads."""
    shared = [type(f"Type{number}", (), {"it": number})() for number in range(2 * MAX_FINDINGS)]
    for each in shared:
        each.it = 1
    assert len(between(list(shared), list(shared))) == MAX_FINDINGS


def test_too_much_to_look_at_is_an_error_and_no_clean_bill():
    """Nothing found in a part of the objects would say nothing about the rest."""
    with pytest.raises(TooManyObjects, match="1000"):
        between([[] for _ in range(2000)], [], objects=1000)
