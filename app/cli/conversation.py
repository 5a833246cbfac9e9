"""The turns of one user at one terminal: what is asked, what is shown, what Ctrl-C means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import attrs
import trio

from app.cli import uploads
from app.cli.approvals import Questions
from app.cli.failures import INTERRUPTED, NoSuchFile, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.cli.client import Api, Thread
    from app.cli.credentials import Credentials
    from app.cli.frames import Frame
    from app.cli.link import Link
    from app.cli.terminal import Lines, Terminal

RETRY_SECONDS: Final = (1.0, 2.0, 4.0, 8.0)
"""Waits before a message is sent again that the server could not take at the time."""

RETRYABLE: Final = frozenset({"rate_limited", "pool_exhausted", "database_unavailable", "draining"})

HELP: Final = """\
/new [title]    start another conversation
/threads        list the conversations
/thread N|ID    go on with one of them
/history        show what was said in this one
/files          list the tables of the agent `analyst`
/upload PATH    give it one more, a CSV or Parquet file
/quit           leave (or Ctrl-D)
Ctrl-C cancels the answer that is coming; at the prompt, twice, it leaves."""


@attrs.define(eq=False)
class Turn:
    """One message of ours and what became of it.

    Attributes:
        outcome: the type of the event that ended the run, the code of the error that refused it, or
            `gap` where its events cannot be had; empty while it goes on.
        interrupted: Ctrl-C was pressed while it went on.
    """

    client_id: str
    run_id: str = ""
    outcome: str = ""
    interrupted: bool = False
    settled: trio.Event = attrs.field(factory=trio.Event)

    def settle(self, outcome: str) -> None:
        """Set the outcome and wake whoever waits for it."""
        self.outcome = outcome
        self.settled.set()

    def reopen(self) -> None:
        """Wait for another outcome."""
        self.outcome = ""
        self.settled = trio.Event()


class Conversation:
    """The turns of one user with one server, over a `Link` that it listens to.

    Attributes:
        exit_code: what the process should end with, if it ended now.
    """

    def __init__(
        self, api: Api, credentials: Credentials, link: Link, terminal: Terminal, agent: str | None
    ) -> None:
        self._api = api
        self._credentials = credentials
        self._link = link
        self._terminal = terminal
        self._agent = agent
        self._turn: Turn | None = None
        self._questions = Questions(terminal, link.decide)
        self._person: Lines | None = None
        self._warned = False
        self.exit_code = 0

    # -- turns ----------------------------------------------------------------------------------------

    async def pick(self, thread_id: str | None, *, new: bool) -> None:
        """Turn to a given thread, to a new one, or to the newest there is."""
        token = await self._credentials.token()
        if thread_id is not None:
            thread = await self._api.thread(token, thread_id)
        else:
            newest = [] if new else await self._api.threads(token, limit=1)
            thread = newest[0] if newest else await self._api.create_thread(token)
        self._follow(thread)

    async def ask(self, content: str) -> str:
        """Send one message, show the answer, and return what ended the run."""
        turn = self._turn = Turn(str(uuid4()))
        self._link.ask(turn.client_id, content, self._agent)
        waits = iter(RETRY_SECONDS)
        while True:
            await self._settled(turn)
            if turn.outcome == "gap":
                await self._look_up(turn)
            elif turn.outcome in RETRYABLE and not turn.interrupted and (wait := next(waits, None)):
                turn.reopen()
                await trio.sleep(wait)
                self._link.ask_again(turn.client_id)
            else:
                break
        self._turn = None
        self._link.forget(turn.client_id)
        if turn.outcome != "agent_completed":
            self.exit_code = INTERRUPTED if turn.interrupted else 1
        return turn.outcome

    async def _settled(self, turn: Turn) -> None:
        """Return when the turn has its outcome; meanwhile the person is asked what the run wants to know."""
        async with trio.open_nursery() as nursery:
            if self._person is not None:
                nursery.start_soon(self._questions.ask, self._person)
            await turn.settled.wait()
            nursery.cancel_scope.cancel()
        self._questions.drop()

    async def _look_up(self, turn: Turn) -> None:
        """Ask how a run stands whose events cannot be had any more."""
        turn.reopen()
        if not turn.run_id:
            return  # the message is on its way again, and answers for itself
        run = await self._api.run(await self._credentials.token(), self._link.thread_id, turn.run_id)
        if turn.settled.is_set() or run.status in {"queued", "running"}:
            return
        if run.status == "completed":
            self._terminal.answer(run.output or "")
            turn.settle("agent_completed")
        else:
            self._terminal.status(f"the run has ended: {run.status}")
            turn.settle(f"run_{run.status}")

    async def converse(self, lines: Lines, *, interactive: bool) -> None:
        """Answer every line, until there are no more."""
        self._person = lines if interactive else None
        while True:
            self._terminal.prompt()
            line = await lines.next()
            if line is None:
                break
            self._terminal.entered()
            self._warned = False
            line = line.strip()
            if interactive and line.startswith("/"):
                if line == "/quit":
                    break
                await self._command(line)
            elif line:
                await self.ask(line)
                if not interactive and self.exit_code == INTERRUPTED:
                    break
        if interactive:
            self.exit_code = 0

    async def _command(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        try:
            await self._obey(word, rest.strip())
        except (Refused, NoSuchFile, ValueError, IndexError) as exc:
            self._terminal.error(f"{line}: {exc}")

    async def _obey(self, word: str, rest: str) -> None:
        token = await self._credentials.token()
        match word:
            case "/new":
                self._follow(await self._api.create_thread(token, rest))
            case "/threads":
                self._terminal.threads(await self._api.threads(token), self._link.thread_id)
            case "/thread" if rest:
                threads = await self._api.threads(token) if rest.isdecimal() else []
                thread = threads[int(rest) - 1] if threads else await self._api.thread(token, rest)
                self._follow(thread)
                await self.show_history()
            case "/history":
                await self.show_history(limit=100)
            case "/files":
                self._terminal.files(await uploads.listed(self._api, token))
            case "/upload" if rest:
                path = Path(rest).expanduser()  # noqa: ASYNC240  # looks into the environment alone
                self._terminal.files([await uploads.upload(self._api, token, path)])
            case _:
                self._terminal.status(HELP)

    async def show_history(self, limit: int = 10) -> None:
        """Show the last messages of the thread."""
        token = await self._credentials.token()
        messages = await self._api.messages(token, self._link.thread_id, limit)
        self._terminal.messages(sorted(messages, key=lambda message: message.created_at))

    def _follow(self, thread: Thread) -> None:
        self._link.follow(thread.thread_id, thread.last_seq)
        self._terminal.status(f"conversation {thread.thread_id} {thread.title}".rstrip())

    # -- Ctrl-C ---------------------------------------------------------------------------------------

    async def watch_interrupts(self, signals: AsyncIterator[int], leave: trio.CancelScope) -> None:
        """Turn Ctrl-C into a cancelled run; a second one leaves, and so do two at the prompt."""
        async for _ in signals:
            self._interrupt(leave)

    def _interrupt(self, leave: trio.CancelScope) -> None:
        turn = self._turn
        if turn is not None and not turn.interrupted:
            turn.interrupted = True
            self._terminal.status("cancelling (Ctrl-C again leaves)")
            if turn.run_id:
                self._link.cancel(turn.run_id)
        elif turn is None and not self._warned:
            self._warned = True
            self._terminal.status("Ctrl-C again or Ctrl-D leaves")
            self._terminal.prompt()
        else:
            self.exit_code = INTERRUPTED
            leave.cancel()

    # -- what the link hears ---------------------------------------------------------------------------

    def on_frame(self, frame: Frame, raw: bytes) -> None:
        """Show an event, and see what it means for our turn."""
        turn = self._turn
        if frame.is_event:
            if (
                turn is not None
                and frame.type == "run_queued"
                and frame.payload.get("client_id") == turn.client_id
            ):
                self._started(turn, frame.run_id)
            mine = turn is not None and frame.run_id == turn.run_id
            self._terminal.event(frame, raw, mine=mine)
            if turn is not None and turn.run_id and frame.run_id.partition("_")[0] == turn.run_id:
                self._questions.hear(frame)  # those of operations inside the run, too
            if turn is not None and mine and frame.ends_run:
                turn.settle(frame.type)
            elif turn is None and frame.ends_run:
                self._terminal.prompt()
        elif turn is not None and frame.type == "accepted" and frame.client_id == turn.client_id:
            self._started(turn, frame.run_id)
        elif frame.type == "error":
            self._refused(turn, frame)

    def on_status(self, text: str) -> None:
        """Show how the connection is."""
        self._terminal.status(text)
        if self._turn is None:
            self._terminal.prompt()

    def on_gap(self, last_seq: int) -> None:
        """Say that the log does not reach back to where we were."""
        self._terminal.status(f"the events up to {last_seq} are gone; /history shows what was said")
        if self._turn is not None:
            self._turn.settle("gap")

    def _started(self, turn: Turn, run_id: str) -> None:
        self._link.forget(turn.client_id)
        if not turn.run_id:
            turn.run_id = run_id
            if turn.interrupted:
                self._link.cancel(run_id)

    def _refused(self, turn: Turn | None, frame: Frame) -> None:
        self._terminal.error(f"{frame.message} ({frame.code})")
        if turn is None or turn.run_id or frame.in_reply_to not in {None, turn.client_id}:
            return
        turn.settle(frame.code)
