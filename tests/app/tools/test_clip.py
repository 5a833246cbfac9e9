"""Values of any size and shape become JSON of bounded size."""

import tracemalloc
from datetime import UTC, datetime
from types import MappingProxyType
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tools.clip import clean_text, clip

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
    max_leaves=20,
)


@given(_JSON)
def test_what_fits_is_kept(value):
    """A value within the limit comes out equal, but for characters that cannot be stored."""
    clipped = clip(value, 1_000_000)
    assert not clipped.truncated
    assert msgspec.json.decode(msgspec.json.encode(clipped.value)) == clipped.value
    if "\\u0000" not in repr(value) and "\\x00" not in repr(value):
        assert clipped.value == value


@given(_JSON, st.integers(0, 200))
def test_what_does_not_fit_is_cut_and_said(value, limit):
    """The size stays near the limit whatever comes in, and a cut is never silent."""
    clipped = clip(value, limit)
    size = len(msgspec.json.encode(clipped.value).decode().encode("ascii", "ignore"))
    assert size <= 6 * limit + 400  # six for JSON's escapes of control characters
    if not clipped.truncated:
        assert clipped.value == clip(value, 1_000_000).value


@pytest.mark.parametrize(
    "make",
    [
        lambda: "x" * 100_000_000,
        lambda: "\u20ac" * 30_000_000,
        lambda: ["y" * 1000] * 10_000_000,
        lambda: dict.fromkeys(map(str, range(200_000)), "z" * 1000),
        lambda: [[0] * 1000] * 100_000,
    ],
    ids=["text", "wide text", "list", "mapping", "nested"],
)
def test_memory_does_not_grow_with_the_value(make):
    """A hundred megabytes are cut without being copied."""
    value = make()
    tracemalloc.start()
    try:
        clipped = clip(value, 64 * 1024)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert clipped.truncated
    assert len(msgspec.json.encode(clipped.value)) < 80 * 1024
    assert peak < 4_000_000


def test_depth_is_cut():
    """A value nested deeper than the encoder can go is cut before it gets there, also one that holds itself."""
    deep = []
    deep.append(deep)
    clipped = clip(deep, 1_000_000)
    assert clipped.truncated
    msgspec.json.encode(clipped.value)


def test_the_copy_shares_nothing():
    """What a tool does to its value afterwards changes nothing."""
    value = {"rows": [1]}
    clipped = clip(value, 1000)
    value["rows"].append(2)
    assert clipped.value == {"rows": [1]}


@attrs.frozen
class Place:
    name: str
    parts: tuple


class Point(msgspec.Struct):
    x: int


def test_objects_become_json():
    """attrs and msgspec objects, times, UUIDs and read-only mappings have a JSON form."""
    value = Place(
        "here", (Point(1), datetime(2026, 1, 2, tzinfo=UTC), UUID(int=7), MappingProxyType({"a": {1}}))
    )
    assert clip(value, 10_000).value == {
        "name": "here",
        "parts": [{"x": 1}, "2026-01-02T00:00:00Z", "00000000-0000-0000-0000-000000000007", {"a": [1]}],
    }


def test_long_integers_become_text():
    """A number that JavaScript would round is text, and one of a million digits is not written out."""
    assert clip([2**53, 2**53 + 1, -(2**70)], 1000).value == [2**53, str(2**53 + 1), str(-(2**70))]
    huge = clip(10**1_000_000, 65536)
    assert huge.truncated
    assert len(huge.value) < 100
    assert clip(10**6000, 65536).value == hex(10**6000)


@pytest.mark.parametrize("value", [b"bytes", object(), {1: 2}, [lambda: None]])
def test_what_has_no_json_form_is_refused(value):
    """Such a value is the tool's mistake, and is not guessed at."""
    with pytest.raises(TypeError):
        clip(value, 1000)


def test_clean_text():
    """NUL and lone surrogates cannot be stored; everything else is left alone."""
    assert clean_text("plain \u20ac \U0001f600") == "plain \u20ac \U0001f600"
    assert clean_text("a\0b\ud83dc\udfff") == "a\ufffdb\ufffdc\ufffd"
