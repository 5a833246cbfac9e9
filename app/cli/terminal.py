"""What the terminal client shows, and how it reads what is typed.

Answers go to standard output; everything else (prompts, tools, thoughts, the connection) goes to standard
error, so that a pipe gets the answers alone.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

import msgspec
import trio
from rich.console import Console

from app.cli.uploads import line_of

if TYPE_CHECKING:
    from app.cli.client import Message, Thread
    from app.cli.frames import Frame
    from app.cli.uploads import File

LINE_BYTES: Final = 256 * 1024
"""The longest line that is taken from standard input; more than any server's message limit."""

SHOWN: Final = 400
"""Characters of a tool's arguments or result that are shown."""

# What an answer may hold of control characters: line feed and tab. The rest could drive the terminal.
_CONTROLS: Final = dict.fromkeys(
    code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
)


def clean(text: str) -> str:
    """Return a server's text without what a terminal would obey."""
    return text.translate(_CONTROLS)


class Lines:
    """Lines of a descriptor, read when it is readable: nothing blocks, and a wait can be cancelled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()
        self._ended = False

    async def next(self) -> str | None:
        """Return the next line without its end, or None at the end of input. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while True:
            line, found, rest = self._buffer.partition(b"\n")
            if found or (self._ended and line) or len(line) > LINE_BYTES:
                self._buffer = rest
                return line.decode(errors="replace").rstrip("\r")
            if self._ended:
                return None
            data = await self._read()
            self._ended = not data
            self._buffer += data

    async def _read(self) -> bytes:
        with suppress(PermissionError):  # a regular file cannot be waited for, and never has to be
            await trio.lowlevel.wait_readable(self._descriptor)
        return os.read(self._descriptor, 65536)


class Terminal:
    """Shows a conversation.

    The screen is either at the start of a line, or behind something unfinished (a prompt, an answer that
    is still coming); whatever is shown next begins with ending that.
    """

    def __init__(self, *, interactive: bool, as_json: bool) -> None:
        self._interactive = interactive
        self._as_json = as_json
        self._err = Console(file=sys.stderr, soft_wrap=True, highlight=False, markup=False)
        self._open: TextIO | None = None  # the stream whose last line is unfinished
        self._said: dict[str, str] = {}

    def prompt(self) -> None:
        """Ask for a line, where there is somebody to ask."""
        if self._interactive:
            self._break()
            self._err.print("you> ", style="bold cyan", end="")
            self._open = sys.stderr

    def question(self, tool: str, arguments: Any) -> None:
        """Ask whether a call may be made."""
        self._break()
        self._err.print(clean(f"allow {tool} {_brief(arguments)}? y/n> "), style="bold yellow", end="")
        self._open = sys.stderr

    def entered(self) -> None:
        """Take note that the typed line has ended the prompt."""
        self._open = None

    def status(self, text: str) -> None:
        """Show a sentence of the client's own."""
        self._break()
        self._err.print(clean(text), style="dim")

    def error(self, text: str) -> None:
        """Show what went wrong."""
        self._break()
        self._err.print(clean(text), style="red")

    def event(self, frame: Frame, raw: bytes, *, mine: bool) -> None:
        """Show an event; `mine` says that the run was started here."""
        if self._as_json:
            sys.stdout.buffer.write(raw + b"\n")
            sys.stdout.buffer.flush()
            return
        payload = frame.payload
        inner = "_" in frame.run_id  # of a sub-agent, whose words are no part of the answer
        if frame.type == "message_delta":
            if inner:
                return
            self._say(str(payload.get("message_id")), str(payload.get("text", "")))
        elif frame.type == "agent_completed" and frame.ends_run:
            self._rest(str(payload.get("message_id")), str(payload.get("output") or ""))
        elif frame.type == "run_resumed" and not inner:
            self._resume(str(payload.get("message_id")), str(payload.get("output") or ""))
        elif frame.type == "run_failed":
            self.error(f"failed: {payload.get('message')} ({payload.get('code')})")
        elif aside := _aside(frame, mine=mine):
            self.status(aside)
        if frame.ends_run:
            self._said.clear()

    def answer(self, text: str) -> None:
        """Show an answer that came in one piece."""
        self._rest("", text)

    def messages(self, messages: list[Message]) -> None:
        """Show what was said before."""
        self._break()
        for message in messages:
            self._err.print(
                clean(f"{'you' if message.role == 'user' else 'answer'}> {message.content}"), style="dim"
            )

    def threads(self, threads: list[Thread], present: str) -> None:
        """List conversations, with a number to pick one by."""
        self._break()
        for number, thread in enumerate(threads, 1):
            mark = "*" if thread.thread_id == present else " "
            line = f"{mark}{number:3}  {thread.thread_id}  {thread.created_at[:16]}  {thread.title}"
            self._err.print(clean(line), no_wrap=True)

    def files(self, files: list[File]) -> None:
        """List uploaded files."""
        self._break()
        for line in map(line_of, files):
            self._err.print(clean(line))
        if not files:
            self.status("There are none yet: /upload PATH adds one.")

    def _say(self, message_id: str, text: str) -> None:
        if self._open is not sys.stdout:
            self._break()
        # Remembered so that the end of the run adds what was not streamed, and nothing twice.
        self._said[message_id] = self._said.get(message_id, "") + text
        sys.stdout.write(clean(text))
        sys.stdout.flush()
        if text:
            self._open = None if text.endswith("\n") else sys.stdout

    def _resume(self, message_id: str, output: str) -> None:
        """Take back what was said after the last checkpoint, as far as a terminal can."""
        said = self._said.get(message_id, "")
        self.status("the run goes on after a restart of the server")
        self._said[message_id] = output
        if said != output and output:
            self._said[message_id] = ""
            self._say(message_id, output)  # again from the start: half of what was shown is void

    def _rest(self, message_id: str, output: str) -> None:
        said = self._said.get(message_id, "")
        if output.startswith(said) and len(output) > len(said):
            self._say(message_id, output[len(said) :])
        self._break()

    def _break(self) -> None:
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None


_NEWS: Final = {
    "approval_requested": ("  an approval is needed:", "tool"),
    "approval_resolved": ("  decided:", "decision"),
    "run_suspended": ("suspended, and goes on by itself:", "reason"),
    "run_cancelled": ("cancelled:", "reason"),
    "run_interrupted": ("interrupted:", "reason"),
}
"""What is told in a few words and one field of the payload."""


def _aside(frame: Frame, *, mine: bool) -> str | None:
    """Return the line that tells of an event which is no answer, if it deserves one."""
    payload, line = frame.payload, None
    match frame.type:
        case "run_queued" if not mine:
            line = f"elsewhere> {payload.get('content', '')}"
        case "run_queued" if payload.get("position"):
            line = f"queued, {payload['position']} before it"
        case "agent_started" if payload.get("depth"):
            line = f"  {payload.get('agent')} begins"
        case "agent_completed" if payload.get("depth"):
            line = f"  {payload.get('agent')} → {_brief(payload.get('output'))}"
        case "agent_failed":
            line = f"  {payload.get('agent')} failed: {payload.get('message')} ({payload.get('code')})"
        case "agent_thinking":
            line = f"  {payload.get('text', '')}"
        case "tool_executing":
            line = f"  {payload.get('tool')} {_brief(payload.get('arguments'))}"
        case "tool_completed":
            ok = payload.get("ok")
            what = _brief(payload.get("result")) if ok else f"failed: {_brief(payload.get('error'))}"
            line = f"  {payload.get('tool')} → {what} ({payload.get('milliseconds')} ms)"
        case other if other in _NEWS:
            words, field = _NEWS[other]
            line = f"{words} {_brief(payload.get(field))}"
    return line


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"
