"""`nurseries chat`: a conversation at a terminal, in a pipe, or one message."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from app.cli.client import open_api
from app.cli.conversation import Conversation
from app.cli.credentials import authenticate, sign_in
from app.cli.failures import explained
from app.cli.link import Link
from app.cli.options import DEFAULT_URL, Email, Password, Switch, Url
from app.cli.terminal import Lines, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.cli.failures import Exit

PATIENCE_SECONDS: Final = 60.0
"""How long a pipe waits for a server that is away; a person decides that for themselves."""

BROKEN_PIPE: Final = 141
"""The exit status of a program whose reader has left (128 + SIGPIPE)."""


async def chat_command(  # noqa: PLR0913  # a command has as many parameters as flags
    *,
    url: Url = DEFAULT_URL,
    email: Email = None,
    password: Password = None,
    register: Switch = False,
    signin: str | None = None,
    thread: str | None = None,
    new: Switch = False,
    agent: str | None = None,
    once: str | None = None,
    json: Switch = False,
) -> int:
    """Talk to an agent.

    At a terminal it goes on with the newest conversation. From a pipe every line is a message of a new
    conversation, and the answers alone go to standard output. Ctrl-C cancels the answer that is coming.

    Exits with 0; 1 when a run failed or was refused; 3 when it cannot log in; 4 when the server cannot be
    reached; 130 when interrupted.

    Args:
        url: Where the server is.
        email: The account; the one that is logged in here, or asked for, when it is not given.
        password: Its password, needed for the first login only: the session is kept in the state
            directory, readable by its owner alone. Better in the variable than on the command line.
        register: Make the account first.
        signin: The link that a new server printed for its first user, instead of email and password.
        thread: The id of the conversation to go on with.
        new: Start a new conversation.
        agent: The agent that answers; the server's default when not given.
        once: Send this one message, show the answer and leave.
        json: Print the events as they came from the server, one a line, in place of the answers.
    """
    interactive = once is None and sys.stdin.isatty()
    terminal = Terminal(interactive=interactive, as_json=json)
    with explained(terminal.error) as ending, unread_output(ending):
        async with open_api(url) as api:
            if signin is not None:
                credentials = await sign_in(api, url, signin)
            else:
                credentials = await authenticate(api, url, email, password, register=register)
            patience = float("inf") if interactive else PATIENCE_SECONDS
            link = Link(url, credentials, patience=patience)
            conversation = Conversation(api, credentials, link, terminal, agent)
            await conversation.pick(thread, new=new or not interactive)
            if interactive and not new:
                await conversation.show_history()
            await _talk(conversation, link, once, interactive=interactive)
            ending.status = conversation.exit_code
    return ending.status


@contextmanager
def unread_output(ending: Exit) -> Iterator[None]:
    """Let the command end as others do where nobody reads its output any more, such as `head` behind it."""
    try:
        yield
    except* BrokenPipeError:
        # Python flushes standard output at exit and would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ending.status = BROKEN_PIPE


async def _talk(conversation: Conversation, link: Link, once: str | None, *, interactive: bool) -> None:
    with trio.open_signal_receiver(signal.SIGINT) as signals:  # before anybody is asked for anything
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conversation.watch_interrupts, signals, nursery.cancel_scope)
            nursery.start_soon(link.run, conversation)
            if once is not None:
                await conversation.ask(once)
            else:
                await conversation.converse(Lines(sys.stdin.fileno()), interactive=interactive)
            nursery.cancel_scope.cancel()
