"""`nurseries`: serve, chat, bench, user."""

from __future__ import annotations

import sys

from cyclopts import App

app = App(
    name="nurseries",
    help="A multi-user AI-agent chat server in which every request lives in its own nursery.",
    backend="trio",
    result_action="return_value",
)
# By name, so that no command waits for what another one imports.
app.command("app.cli.serve:serve_command", name="serve")
app.command("app.cli.chat:chat_command", name="chat")
app.command("app.cli.bench:bench_command", name="bench")
app.command("app.cli.user:user", name="user")


def main() -> None:
    """Run the command line; the exit status is what the command returns."""
    status = app()
    sys.exit(status if isinstance(status, int) else 0)
