"""The user context: refused unless it names somebody, and immutable all the way down."""

import gc
import pickle
import weakref
from datetime import UTC, datetime

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nurseries.context import MAX_DEPTH, MAX_ID_LENGTH, PLACEHOLDERS, DepthExceeded, UserContext
from nurseries.errors import InvalidContext

IDS = {"user_id": "u-1", "thread_id": "t-1", "run_id": "r-1"}


def context(**fields) -> UserContext:
    return UserContext(**{**IDS, **fields})


@pytest.mark.parametrize(
    "field", ["user_id", "thread_id", "run_id", "request_id", "parent_request_id", "websocket_client_id"]
)
@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "\t",
        " u",
        "u ",
        "a\nb",
        "a\x00b",
        "a\x7fb",
        "\ud800",
        "a\u2028b",
        "x" * (MAX_ID_LENGTH + 1),
        5,
        b"u",
        ["u"],
        object(),
    ],
)
def test_an_identifier_that_is_none_is_refused_by_name(field, value):
    """Empty, padded, over-long, unprintable and not a string: the error names the field."""
    with pytest.raises(InvalidContext) as refused:
        context(**{field: value})
    assert refused.value.field == field
    assert field in str(refused.value)


@pytest.mark.parametrize("word", sorted(PLACEHOLDERS))
@pytest.mark.parametrize("spelling", [str, str.upper, str.title])
def test_placeholders_are_refused_as_whole_values(word, spelling):
    """A word that stands where an id was forgotten, in any case."""
    with pytest.raises(InvalidContext, match="placeholder"):
        context(user_id=spelling(word))


@pytest.mark.parametrize(
    "name", ["contest-winner", "demo-user-001", "nullable", "testing-ground-7", "defaults", "Ünïcode", "a b"]
)
def test_names_that_contain_such_a_word_are_names(name):
    """Only the whole value counts."""
    assert context(user_id=name).user_id == name


def test_required_ids_cannot_be_left_out_or_be_none():
    """There is no context for nobody."""
    for field in IDS:
        with pytest.raises(InvalidContext) as refused:
            context(**{field: None})
        assert refused.value.field == field
        with pytest.raises(TypeError):
            UserContext(**{name: value for name, value in IDS.items() if name != field})


@pytest.mark.parametrize("depth", [-1, MAX_DEPTH + 1, 1.0, True, "1"])
def test_depth_is_a_small_whole_number(depth):
    """Also not a bool, which Python counts among the integers."""
    with pytest.raises(InvalidContext) as refused:
        context(operation_depth=depth)
    assert refused.value.field == "operation_depth"


@pytest.mark.parametrize("moment", [datetime(2026, 1, 1), "2026-01-01", None])  # noqa: DTZ001  # that is the point
def test_created_at_needs_a_time_zone(moment):
    """A time that could mean anything is refused."""
    with pytest.raises(InvalidContext) as refused:
        context(created_at=moment)
    assert refused.value.field == "created_at"


def test_no_field_can_be_set():
    """Frozen, and without room for anything else."""
    made = context()
    for name in [*(field.name for field in attrs.fields(UserContext)), "surprise"]:
        with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
            setattr(made, name, "other")


def test_what_was_passed_in_cannot_change_what_is_inside():
    """The mappings are copies, at every depth."""
    inner, numbers = {"deep": [1]}, [1, 2]
    passed = {"inner": inner, "numbers": numbers, "set": {3}}
    made = context(agent_context=passed, audit_metadata=passed)
    inner["deep"].append(2)
    inner["new"] = 1
    numbers.clear()
    passed.clear()
    for mapping in (made.agent_context, made.audit_metadata):
        assert mapping["inner"]["deep"] == (1,)
        assert dict(mapping["inner"]) == {"deep": (1,)}
        assert mapping["numbers"] == (1, 2)
        assert mapping["set"] == frozenset({3})


def test_what_is_inside_cannot_be_changed_at_any_depth():
    """No item assignment, no method that changes, no way around by attributes."""
    made = context(agent_context={"a": {"b": [{"c": 1}]}})
    for mapping in (made.agent_context, made.agent_context["a"], made.agent_context["a"]["b"][0]):
        with pytest.raises(TypeError):
            mapping["new"] = 1
        with pytest.raises(TypeError):
            del mapping["a"]
        with pytest.raises(AttributeError):
            mapping._items = {}
        with pytest.raises(AttributeError):
            del mapping._items
        with pytest.raises(TypeError):
            mapping._items["new"] = 1
        assert not hasattr(mapping, "update")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [0, {"b": object()}]}, "agent_context.a[1].b"),
        ({"a": bytearray(b"x")}, "agent_context.a"),
        ({"a": (x for x in ())}, "agent_context.a"),
        ({1: "a"}, "agent_context"),
        (["not a mapping"], "agent_context"),
        ("text", "agent_context"),
        (None, "agent_context"),
    ],
)
def test_what_cannot_be_frozen_is_refused_with_its_path(value, path):
    """A live object inside a context would be shared by whoever gets it."""
    with pytest.raises(InvalidContext) as refused:
        context(agent_context=value)
    assert refused.value.field == path


def test_structures_are_bounded_in_depth_and_size():
    """Also one that contains itself."""
    loop = {}
    loop["self"] = loop
    with pytest.raises(InvalidContext, match="nested deeper"):
        context(agent_context=loop)
    with pytest.raises(InvalidContext, match="more than"):
        context(agent_context={"many": list(range(20_000))})


def test_a_child_keeps_who_and_names_what():
    """Same user and thread; a run id that says where it comes from; a request of its own."""
    parent = context(agent_context={"plan": [1]}, websocket_client_id="c-1")
    child = parent.child("search")
    assert (child.user_id, child.thread_id, child.websocket_client_id) == ("u-1", "t-1", "c-1")
    prefix, _, random = child.run_id.rpartition("_")
    assert prefix == "r-1_search"
    assert len(random) == 8
    assert int(random, 16) >= 0
    assert child.parent_request_id == parent.request_id
    assert child.request_id != parent.request_id
    assert child.operation_depth == 1
    assert child.agent_context == {"plan": (1,)}
    assert child.created_at >= parent.created_at


def test_children_end_at_the_depth_limit():
    """An operation that starts itself is stopped, and every id on the way is valid."""
    deep = context(run_id="0" * 36)
    for _ in range(MAX_DEPTH):
        deep = deep.child("x" * 32)
    with pytest.raises(DepthExceeded):
        deep.child("more")


@pytest.mark.parametrize("operation", ["", "a b", "a/b", "x" * 33, "ä", "-a"])
def test_an_operation_is_a_short_name(operation):
    """It becomes part of an id."""
    with pytest.raises(InvalidContext) as refused:
        context().child(operation)
    assert refused.value.field == "operation"


def test_every_request_has_its_own_id():
    """Ten thousand contexts, ten thousand ids."""
    assert len({context().request_id for _ in range(10_000)}) == 10_000


def test_contexts_are_gone_without_the_collector():
    """Nothing in a context refers back to it, so the last reference is the last."""
    gc.disable()
    try:
        made = [context(agent_context={"a": [1]}).child("x") for _ in range(100)]
        references = [weakref.ref(each) for each in made]
        made.clear()
        assert not [reference for reference in references if reference() is not None]
    finally:
        gc.enable()


def test_a_context_survives_pickling():
    """Mappings included, as for a worker process."""
    made = context(agent_context={"a": [1, {"b": 2}]})
    assert pickle.loads(pickle.dumps(made)) == made


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.datetimes(timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_any_document_freezes_to_something_hashable_and_equal(document):
    """Hashable means immutable to the last leaf; equal means that nothing was lost."""
    frozen = context(agent_context=document).agent_context
    hash(frozen)
    assert thaw(frozen) == document


def thaw(value):
    if hasattr(value, "items"):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, tuple) else value
