"""`nurseries audit`: what two users of a running server share; there should be nothing."""

from __future__ import annotations

import sys
from typing import Final

import attrs
import msgspec
from rich.console import Console
from rich.table import Table

from app.cli.client import Api, open_api
from app.cli.credentials import administrator
from app.cli.failures import Unreachable, explained
from app.cli.options import DEFAULT_URL, AdminToken, Email, Password, Switch, Url

FOUND: Final = 1
CUT_SHORT: Final = 2


@attrs.frozen
class Finding:
    """Something that two users reach and that can change: how it is held, and each user's way to it."""

    kind: str
    type: str
    paths: dict[str, str]


@attrs.frozen
class Report:
    """What `GET /v1/admin/isolation` answers."""

    health: str
    at: str
    seconds: float
    users: int
    objects: int
    findings: list[Finding]
    unconfirmed: int
    truncated: str | None

    @property
    def exit_code(self) -> int:
        """1 for findings, 2 for an audit that did not get through all there was and found nothing, else 0."""
        if self.findings:
            return FOUND
        return 0 if self.truncated is None else CUT_SHORT


async def audit_command(
    *,
    url: Url = DEFAULT_URL,
    email: Email = None,
    password: Password = None,
    admin_token: AdminToken = None,
    json: Switch = False,
) -> int:
    """Have a server look for anything that two of its users share, and print what it found.

    It looks at all that is open at that moment, within the bounds of the server's settings, while the server
    goes on. Needs an account with the role admin.

    Exits with 0; 1 when something was found, or the server refused; 2 when the audit was cut short by its bounds;
    3 when it cannot log in; 4 when the server cannot be reached.

    Args:
        url: Where the server is.
        email: The account; asked for when it is not given.
        password: Its password, needed for the first login only.
        admin_token: An access token, instead of email and password.
        json: Print the report as the server sent it.
    """
    with explained() as ending:
        async with open_api(url) as api:
            token = await administrator(api, url, email, password, admin_token)
            text, report = await ask(api, await token())
        if json:
            sys.stdout.write(text.rstrip("\n") + "\n")
        else:
            print_report(report, Console())
        ending.status = report.exit_code
    return ending.status


async def ask(api: Api, token: str) -> tuple[str, Report]:
    """Have the server audit itself; return its answer, as text and read.

    Raises:
        Refused: the token is not an administrator's.
        Unreachable: the answer is none of this protocol.
    """
    text = await api.text("/v1/admin/isolation", token)
    try:
        return text, msgspec.json.decode(text, type=Report)
    except msgspec.MsgspecError as error:
        raise Unreachable(f"an answer that is not of this protocol ({error})") from error


def print_report(report: Report, console: Console) -> None:
    """Show a report to a person."""
    table = Table.grid(padding=(0, 2))
    table.add_row("users", f"{report.users}")
    table.add_row("objects", f"{report.objects} in {report.seconds:.2f} s")
    table.add_row("shared", f"{len(report.findings)}")
    if report.unconfirmed:
        table.add_row("unconfirmed", f"{report.unconfirmed} suspicions that were gone at the second look")
    if report.truncated is not None:
        table.add_row("cut short", f"by the bound on {report.truncated}: not everything was looked at")
    table.add_row("health", report.health)
    console.print(table)
    for finding in report.findings:
        console.print(f"\n{finding.type}, held as {finding.kind}", style="red", markup=False, highlight=False)
        for user, path in finding.paths.items():
            console.print(f"  {user}: {path}", markup=False, highlight=False, soft_wrap=True)
