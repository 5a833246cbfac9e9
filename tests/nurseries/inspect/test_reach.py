"""What functions and classes may touch although no object says so: imports, assigned variables, metaclasses."""

import array
import functools
import itertools
import threading

import pytest

import tests.fixtures.shelf
from nurseries.inspect import shared_between
from tests.fixtures import borrowers

last = "nothing yet"
table = {}


def between(a, b):
    return shared_between({"alice": [a], "bob": [b]})


def keep_in_module(words):
    global last
    before, last = last, words
    return before


def drop_from_module():
    global last  # noqa: PLW0603
    del last


def replace_in_module(words):
    global table  # noqa: PLW0603
    table = {**table, words: words}


def read_from_module():
    return last


def make_memory():
    heard = ""
    untouched = ""

    def remember(words):
        def within():
            nonlocal heard
            before, heard = heard, words + untouched
            return before

        return within()

    return remember


def make_reader():
    heard = ""
    heard += "x"

    def read():
        return heard

    return read


@pytest.mark.parametrize("borrow", borrowers.WAYS, ids=lambda way: way.__name__)
def test_what_a_function_imports_when_it_runs_is_found(borrow):
    """In whichever words; a function that has not run yet has no other reference to it."""
    (finding,) = between((borrow,), (borrow,))
    assert (finding.kind, finding.type) == ("module variable", "list")
    assert "BOOKS" in finding.paths[0][1]


def test_what_is_imported_and_not_loaded_is_not_loaded_for_that(monkeypatch):
    """To look changes nothing."""
    monkeypatch.delitem(__import__("sys").modules, tests.fixtures.shelf.__name__)
    assert between((borrowers.by_name,), (borrowers.by_name,)) == []
    assert tests.fixtures.shelf.__name__ not in __import__("sys").modules


@pytest.mark.parametrize(
    ("function", "kind", "name"),
    [
        (keep_in_module, "module variable", "last"),
        (drop_from_module, "module variable", "last"),
        (make_memory(), "closure", "heard"),
    ],
)
def test_a_variable_that_a_function_assigns_is_found(function, kind, name):
    """What is in it, a text, cannot change; but the next one who looks finds what the last one put there."""
    (finding,) = between((function,), (function,))
    assert (finding.kind, finding.type) == (kind, "nurseries.inspect.reach.AssignedVariable")
    assert f"it assigns {name}" in finding.paths[0][1]


def test_two_functions_that_assign_one_variable_share_it():
    """Each user has another one of them."""
    (finding,) = between((keep_in_module,), (drop_from_module,))
    assert finding.kind == "module variable"


def test_an_assigned_variable_with_a_dict_is_one_finding():
    """The dict is enough."""
    (finding,) = between((replace_in_module,), (replace_in_module,))
    assert (finding.kind, finding.type) == ("module variable", "dict")


def test_variables_that_nobody_assigns_any_more_may_be_shared():
    """Constants are what modules and closures are for; and each call of a function has variables of its own."""
    reader = make_reader()
    assert between((read_from_module, reader), (read_from_module, reader)) == []
    assert between((make_memory(),), (make_memory(),)) == []


class Registering(type):
    made = []  # noqa: RUF012


class Registered(metaclass=Registering):
    pass


def test_what_a_metaclass_keeps_is_found():
    """It is shared by all classes that it made."""
    (finding,) = between(Registered(), Registered())
    assert (finding.kind, finding.type) == ("class attribute", "list")
    assert "made" in finding.paths[0][1]


@pytest.mark.parametrize(
    "make", [threading.Lock, threading.RLock, lambda: array.array("b"), itertools.count, threading.local]
)
def test_what_only_c_code_sees_is_no_empty_marker(make):
    """The collector sees nothing in them, and two users can still signal or write by them."""
    shared = make()
    assert len(between((shared,), (shared,))) == 1


class Slotted:
    __slots__ = ("here",)


class WithDict(Slotted):
    pass


@pytest.mark.parametrize("make", [Slotted, WithDict])
def test_a_marker_may_have_slots(make):
    """As long as nothing is in them."""
    marker = make()
    assert between((marker,), (marker,)) == []
    marker.here = 1
    assert len(between((marker,), (marker,))) == 1


class Name(str):  # noqa: SLOT000
    pass


class NameWithMemory(str):  # noqa: SLOT000
    heard = []  # noqa: RUF012


def test_a_text_with_attributes_is_looked_into():
    """It may hold what can change, and so may its class; the text itself is none of that."""
    name = Name("ann")
    assert between((name,), (name,)) == []
    name.seen = [1]
    (finding,) = between((name,), (name,))
    assert (finding.kind, finding.type) == ("attribute", "list")
    (finding,) = between(NameWithMemory("ann"), NameWithMemory("bob"))
    assert finding.kind == "class attribute"


class Lazy:
    @functools.cached_property
    def words(self):
        return []


def test_a_cached_property_is_each_instances_own():
    """Whatever the property itself has, such as a lock in Python 3.11."""
    one, other = Lazy(), Lazy()
    one.words.append("one")
    assert other.words == []
    assert between(one, other) == []


def beyond_the_top():
    from ........ import nothing  # noqa: TID252

    return nothing


def test_an_import_that_would_fail_is_passed_over():
    """It is not for the audit to fail in its stead."""
    assert between((beyond_the_top,), (beyond_the_top,)) == []
