"""Server-sent events, however the network cuts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.models.errors import ModelFailure
from app.engine.models.sse import MAX_EVENT, Event, EventDecoder
from app.engine.models.text import TextJoiner


def decoded(data, size):
    decoder = EventDecoder()
    return [event for at in range(0, len(data), size) for event in decoder.feed(data[at : at + size])]


STREAM = (
    b": a comment\n\nevent: first\ndata: one\ndata:two\nid: 7\nretry: 5\n\n\n"
    b'data: {"x": "\xc3\xa4"}\r\n\r\nunknown: x\ndata\n\nevent: none\n\ndata: [DONE]\n\ndata: cut'
)
EVENTS = [
    Event("first", b"one\ntwo"),
    Event("", b'{"x": "\xc3\xa4"}'),
    Event("", b""),
    Event("", b"[DONE]"),
]


@given(st.integers(1, len(STREAM)))
def test_events_are_the_same_in_every_cut(size):
    """Lines end with LF or CRLF; comments and unknown fields are passed over; an event without its end is none."""
    assert decoded(STREAM, size) == EVENTS


@pytest.mark.parametrize(
    "data", [b"data: " + b"x" * MAX_EVENT, b"data: x\n" * MAX_EVENT, b"x" * (MAX_EVENT + 1)]
)
def test_an_event_is_bounded(data):
    """One line, many lines or no line at all: what goes on for ever fails."""
    with pytest.raises(ModelFailure, match="too long"):
        decoded(data, 64 * 1024)


def test_many_events_are_no_long_one():
    """The bound is on each of them."""
    assert len(decoded(b"data: x\n\n: pause\n" * 100_000, 64 * 1024)) == 100_000


@given(st.text(), st.integers(1, 3))
def test_text_in_pieces_is_the_text(text, size):
    """Also where characters are cut in two, as UTF-16 units."""
    units = text.encode("utf-16-le", "surrogatepass")
    pieces = [
        units[at : at + 2 * size].decode("utf-16-le", "surrogatepass")
        for at in range(0, len(units), 2 * size)
    ]
    joiner = TextJoiner()
    shown = [joiner.join(piece) for piece in pieces]
    assert "".join(shown) == text
    for piece in shown:
        piece.encode()


def test_a_half_without_its_other_is_replaced():
    """Nothing that cannot be shown gets through."""
    joiner = TextJoiner()
    assert [joiner.join(piece) for piece in ("a\ud83d", "b", "\ude00")] == ["a", "\ufffdb", "\ufffd"]
