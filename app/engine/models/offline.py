"""The model that needs no network: deterministic, and useful for its tools alone.

A line that begins with `calculate`, `search` or `time` asks for a tool; several such lines ask for several
at once. Where agents can be delegated to, each line, and each part of a line between semicolons, is a task: for the
agent that it names (`clerk: what is the time`), or for the next one in the order of their names. The analyst's tools
run what follows `sql:`, and else profile each table. Everything else is answered with a short account of the conversation so far.
"""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

import trio

from app.engine.model import ModelTurn, TextPiece, ThinkingPiece, ToolCall, ToolTurn, Usage, UserTurn
from app.engine.models.analysis import PROFILE, QUERY, analysis_calls, analysis_outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from app.engine.model import Conversation, Piece
    from app.tools.calls import ToolResult

NAME: Final = "offline"
SELF: Final = "I am the offline model"
_HELP: Final = "No language model is configured here. In a line of its own you can write `calculate 6*7`, `search <words>` or `time`."
_LINE: Final = re.compile(r"\s*(calculate|search|time)\b[:\s]*(.*?)\s*", re.IGNORECASE)
_PIECE: Final = re.compile(r"\S*\s*(?:\S+\s*){0,3}")  # four words: a stream that can be seen as one
_QUOTED_WORDS: Final = 8
_QUOTED_CHARACTERS: Final = 80


class OfflineModel:
    """Answers from the conversation and the tools' results alone; it has no state."""

    @asynccontextmanager
    async def stream(self, conversation: Conversation) -> AsyncIterator[AsyncIterator[Piece]]:
        """Open the answer to the last turn."""
        await trio.lowlevel.checkpoint()
        yield _Stream(_answer(conversation))

    def shared(self) -> tuple[type, ...]:
        """Return the types of what its users share by design: itself, which keeps nothing."""
        return (OfflineModel,)

    async def aclose(self) -> None:
        """It has nothing to close."""
        await trio.lowlevel.checkpoint()


class _Stream:
    """The pieces of one answer, with a checkpoint before each."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Piece:
        await trio.lowlevel.checkpoint()
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def _answer(conversation: Conversation) -> Iterator[Piece]:
    last = conversation.turns[-1]
    text = ""
    if isinstance(last, UserTurn) and (
        calls := _delegations(last.text, conversation)
        or analysis_calls(last.text, conversation)
        or _calls(last.text, conversation)
    ):
        names = ", ".join(_named(call) for call in calls)
        yield ThinkingPiece(f"The message asks in so many words for: {names}.")
        yield from calls
    else:
        text = _results(conversation, last.results) if isinstance(last, ToolTurn) else _account(conversation)
        for piece in _PIECE.findall(text):
            if piece:
                yield TextPiece(piece)
    yield Usage(sum(_words(turn) for turn in conversation.turns), len(text.split()), NAME)


def _delegations(message: str, conversation: Conversation) -> list[ToolCall]:
    """Return a task for each part of a message, where there are agents to give them to."""
    found = [tool for tool in conversation.tools if tool.name == "delegate"]
    if not found:
        return []
    agents = found[0].parameters["properties"]["agent"]["enum"]
    in_turn = cycle(agents)
    calls: list[ToolCall] = []
    for part in filter(None, map(str.strip, re.split(r"[;\n]", message))):
        name, _, task = (word.strip() for word in part.partition(":"))
        if name.lower() not in agents or not task:
            name, task = next(in_turn), part
        calls.append(ToolCall(f"call_{len(calls) + 1}", "delegate", {"agent": name.lower(), "task": task}))
    return calls


def _calls(message: str, conversation: Conversation) -> list[ToolCall]:
    """Return the calls that the lines of a message ask for."""
    tools = {tool.name for tool in conversation.tools}
    calls: list[ToolCall] = []
    for line in message.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        word, rest = match[1].lower(), match[2]
        if word == "time" and rest.strip("?!. "):
            continue  # a sentence that happens to begin with "time"
        tool, arguments = {
            "calculate": ("calculator", {"expression": rest.rstrip("=? ")}),
            "search": ("search_messages", {"query": rest}),
            "time": ("clock", {}),
        }[word]
        if tool in tools and (rest or word == "time"):
            calls.append(ToolCall(f"call_{len(calls) + 1}", tool, arguments))
    return calls


def _named(call: ToolCall) -> str:
    arguments = call.arguments if isinstance(call.arguments, dict) else {}
    return str(arguments.get("agent", call.tool)) if call.tool == "delegate" else call.tool


def _results(conversation: Conversation, results: tuple[ToolResult, ...]) -> str:
    """Put what the tools returned into words."""
    asked = conversation.turns[-2]
    calls = asked.calls if isinstance(asked, ModelTurn) else ()
    lines = [_outcome(call, result) for call, result in zip(calls, results, strict=False)]
    whose = "agents'" if any(call.tool == "delegate" for call in calls) else "tools'"
    return "\n".join([f"{SELF}; these are the {whose} own answers.", *lines])


def _outcome(call: ToolCall, result: ToolResult) -> str:
    arguments = call.arguments if isinstance(call.arguments, dict) else {}
    asked = " ".join([result.tool, *map(str, arguments.values())])
    if result.tool == "delegate":
        agent = arguments.get("agent")
        return f"{agent}: {result.result}" if result.ok else f"{agent}: not possible: {result.error}"
    if not result.ok:
        return f"{asked}: not possible: {result.error}"
    return _told(result, asked, arguments)


def _told(result: ToolResult, asked: str, arguments: dict[str, Any]) -> str:
    """Put what one tool returned into words."""
    value = result.result
    if result.tool in {QUERY, PROFILE} and isinstance(value, dict) and "rows" in value:
        return analysis_outcome(result.tool, value)
    if isinstance(value, str):
        return f"{arguments.get('expression', asked)} = {value}"
    if isinstance(value, dict) and "utc" in value:
        return f"The time is {value['utc']}."
    if isinstance(value, dict) and "messages" in value:
        found = [
            f"- {message['created_at']} {message['role']}: {message['snippet']}"
            for message in value["messages"]
        ]
        return "\n".join(
            [f"{asked}: {len(found)} found, newest first" if found else f"{asked}: nothing found", *found]
        )
    return f"{asked}: {value}"


def _account(conversation: Conversation) -> str:
    """Say how long the conversation is, and how it begins and ends."""
    asked = [turn.text for turn in conversation.turns if isinstance(turn, UserTurn)]
    answered = sum(isinstance(turn, ModelTurn) and not turn.calls for turn in conversation.turns)
    latest = asked[-1]
    account = f"{SELF}. {_HELP}\nYour message has {_count(len(latest.split()), 'word')}: {_quoted(latest)}."
    if len(asked) == 1:
        return f"{account} It is the first one of this conversation."
    return (
        f"{account} Before it you wrote {_count(len(asked) - 1, 'message')}, beginning with {_quoted(asked[0])},"
        f" and got {_count(answered, 'answer')}."
    )


def _quoted(text: str) -> str:
    words = text.split()
    quoted = " ".join(words[:_QUOTED_WORDS])
    short = quoted[:_QUOTED_CHARACTERS]
    more = "" if len(words) <= _QUOTED_WORDS and short == quoted else " \u2026"
    return f"\u201c{short}{more}\u201d"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _words(turn: object) -> int:
    return len(turn.text.split()) if isinstance(turn, UserTurn | ModelTurn) else 0
