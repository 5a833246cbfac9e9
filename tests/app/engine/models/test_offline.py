"""The offline model says what it is, and asks for a tool where the message does in so many words."""

import pytest

from app.engine.engine import built_in_tools
from app.engine.model import (
    Conversation,
    ModelTurn,
    TextPiece,
    ThinkingPiece,
    ToolCall,
    ToolTurn,
    Usage,
    UserTurn,
)
from app.engine.models.offline import OfflineModel
from app.tools.calls import ToolResult

TOOLS = tuple(tool.describe() for tool in built_in_tools().select(("calculator", "search_messages", "clock")))


async def answer(*turns, tools=TOOLS):
    pieces = []
    async with OfflineModel().stream(Conversation("", turns, tools)) as stream:
        pieces.extend([piece async for piece in stream])
    return pieces


def text(pieces):
    return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))


def calls(pieces):
    return [(piece.tool, piece.arguments) for piece in pieces if isinstance(piece, ToolCall)]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("calculate 6*7", [("calculator", {"expression": "6*7"})]),
        ("calculate 6*7 = ?", [("calculator", {"expression": "6*7"})]),
        ("Calculate: 6 * 7 =", [("calculator", {"expression": "6 * 7"})]),
        ("search blue whale", [("search_messages", {"query": "blue whale"})]),
        ("time", [("clock", {})]),
        ("  TIME?", [("clock", {})]),
        (
            "Hello!\ncalculate 1/3\nsearch apples\ntime\ncalculate 2**8",
            [
                ("calculator", {"expression": "1/3"}),
                ("search_messages", {"query": "apples"}),
                ("clock", {}),
                ("calculator", {"expression": "2**8"}),
            ],
        ),
        ("please calculate 6*7", []),
        ("time flies like an arrow", []),
        ("timetable", []),
        ("searching for words", []),
        ("calculate", []),
        ("search  ", []),
        ("", []),
    ],
)
async def test_tools_are_asked_for_by_line(message, expected):
    """All calls of a message come in one step, without text."""
    pieces = await answer(UserTurn(message))
    assert calls(pieces) == expected
    assert bool(text(pieces)) is not bool(expected)
    assert len({piece.call_id for piece in pieces if isinstance(piece, ToolCall)}) == len(expected)
    assert isinstance(pieces[-1], Usage)


async def test_tools_it_was_not_given_are_not_asked_for():
    """An agent without tools gets an account instead of calls that must fail."""
    assert calls(await answer(UserTurn("calculate 1+1"), tools=())) == []


async def test_it_says_that_it_is_offline_and_what_was_said():
    """The account counts, and quotes the first and the latest message."""
    first = text(await answer(UserTurn("hello there")))
    assert "I am the offline model" in first
    assert "2 words: \u201chello there\u201d" in first
    assert "first one" in first
    later = text(
        await answer(
            UserTurn("hello there"), ModelTurn("hi"), UserTurn("one two three four five six seven eight nine")
        )
    )
    assert "9 words: \u201cone two three four five six seven eight \u2026\u201d" in later
    assert "1 message, beginning with \u201chello there\u201d" in later
    assert "1 answer" in later


async def test_it_streams_and_is_deterministic():
    """The same conversation gives the same pieces, more than a few of them, for 30,000 characters in a word too."""
    turns = UserTurn("a" * 30_000), ModelTurn("b"), UserTurn("c d")
    pieces = await answer(*turns)
    assert len(pieces) > 5
    assert pieces == await answer(*turns)
    assert len(text(pieces)) < 1000


async def test_it_puts_results_into_words():
    """Values, findings, the time and failures each have their sentence."""
    asked = [
        ToolCall("1", "calculator", {"expression": "6*7"}),
        ToolCall("2", "calculator", {"expression": "1/0"}),
        ToolCall("3", "search_messages", {"query": "whale"}),
        ToolCall("4", "search_messages", {"query": "nothing"}),
        ToolCall("5", "clock", {}),
        ToolCall("6", "other", {"a": 1}),
    ]
    found = {"message_id": "m", "created_at": "2026-01-01", "role": "user", "snippet": "the blue whale"}
    results = (
        ToolResult("1", "calculator", ok=True, milliseconds=1, result="42"),
        ToolResult("2", "calculator", ok=False, milliseconds=1, error="division by zero"),
        ToolResult("3", "search_messages", ok=True, milliseconds=1, result={"found": 1, "messages": [found]}),
        ToolResult("4", "search_messages", ok=True, milliseconds=1, result={"found": 0, "messages": []}),
        ToolResult("5", "clock", ok=True, milliseconds=1, result={"utc": "2026-01-01T00:00:00Z"}),
        ToolResult("6", "other", ok=True, milliseconds=1, result={"truncated": True, "result": []}),
    )
    pieces = await answer(UserTurn("..."), ModelTurn("", tuple(asked)), ToolTurn(results))
    assert not any(isinstance(piece, ToolCall | ThinkingPiece) for piece in pieces)
    assert text(pieces).splitlines() == [
        "I am the offline model; these are the tools' own answers.",
        "6*7 = 42",
        "calculator 1/0: not possible: division by zero",
        "search_messages whale: 1 found, newest first",
        "- 2026-01-01 user: the blue whale",
        "search_messages nothing: nothing found",
        "The time is 2026-01-01T00:00:00Z.",
        "other 1: {'truncated': True, 'result': []}",
    ]
