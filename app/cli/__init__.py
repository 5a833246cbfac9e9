"""`nurseries`: the command line, a file for each command."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from importlib.metadata import version
from typing import Final

from cyclopts import App

IDLE: Final = "Trio thread "
"""How the names of Trio's worker threads begin while they have nothing to do."""

HELP: Final = """\
A multi-user AI-agent chat server in which every request lives in its own nursery.

`serve` runs it, `chat` talks to its agents, `files` uploads tables for one of them, and `user` adds people, disables them
and gives them roles. `audit` looks for what two users share; `bench` measures a server, and `soak` lets many users do
everything for a long time."""

app = App(
    name="nurseries",
    help=HELP,
    version=lambda: version("nurseries"),
    backend="trio",
    result_action="return_value",
)
# By name, so that no command waits for what another one imports.
app.command("app.cli.serve:serve_command", name="serve")
app.command("app.cli.chat:chat_command", name="chat")
app.command("app.cli.files:files", name="files")
app.command("app.cli.user:user", name="user")
app.command("app.cli.audit:audit_command", name="audit")
app.command("app.cli.bench:bench_command", name="bench")
app.command("app.cli.soak.command:soak_command", name="soak")


def main() -> None:
    """Run the command line; the exit status is what the command returns."""
    status = app()
    _leave(status if isinstance(status, int) else 0)


def _leave(status: int) -> None:
    """End the process, with this status whatever runs in its threads.

    A thread that was abandoned may be inside a library's C++ code. Where the interpreter unwinds such a thread
    at its end, the process is aborted instead (https://docs.python.org/3/c-api/init.html: threads at shutdown).
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if any(thread.daemon and not thread.name.startswith(IDLE) for thread in threading.enumerate()):
        os._exit(status)
    sys.exit(status)
