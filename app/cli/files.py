"""`nurseries files add|list|remove`: the tables that the analyst answers questions about."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path  # noqa: TC003  # cyclopts reads the annotations at run time
from typing import TYPE_CHECKING, Final

import attrs
from cyclopts import App, Parameter

from app.cli import uploads
from app.cli.client import Api, open_api
from app.cli.credentials import Credentials, authenticate
from app.cli.failures import NoSuchFile, error_line, explained
from app.cli.options import DEFAULT_URL, Email, Password, Url
from app.cli.terminal import clean

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

files = App(name="files", help="Add CSV and Parquet files for the agent `analyst`, list them, remove them.")


@Parameter(name="*")
@attrs.frozen
class Account:
    """Whose files, and on which server.

    Attributes:
        url: Where the server is.
        email: The account; the one that is logged in here, or asked for, when it is not given.
        password: Its password, needed for the first login only.
    """

    url: Url = DEFAULT_URL
    email: Email = None
    password: Password = None


DEFAULT_ACCOUNT: Final = Account()


@files.command
async def add(path: Path, /, *paths: Path, account: Account = DEFAULT_ACCOUNT) -> int:
    """Upload files, and print what the analyst calls them. All are tried; the status is 1 where one was refused.

    Args:
        path: A CSV or Parquet file.
        paths: More of them.
        account: Whose files, and on which server.
    """
    with explained() as ending:
        async with _logged_in(account) as (api, credentials):
            for each in (path, *paths):
                with explained(partial(_complain, each)) as one:
                    _print(await uploads.upload(api, await credentials.token(), each))
                ending.status = ending.status or one.status
    return ending.status


@files.command(name="list")
async def list_(*, account: Account = DEFAULT_ACCOUNT) -> int:
    """List the files: table, rows, name and columns, one a line.

    Args:
        account: Whose files, and on which server.
    """
    with explained() as ending:
        async with _logged_in(account) as (api, credentials):
            for file in await uploads.listed(api, await credentials.token()):
                _print(file)
    return ending.status


@files.command
async def remove(table: str, /, *tables: str, account: Account = DEFAULT_ACCOUNT) -> int:
    """Remove files for good: all that are named, or none where there is no such table.

    Args:
        table: A table, as `list` shows it.
        tables: More of them.
        account: Whose files, and on which server.
    """
    with explained() as ending:
        async with _logged_in(account) as (api, credentials):
            token = await credentials.token()
            ids = {file.table: file.file_id for file in await uploads.listed(api, token)}
            if missing := [each for each in (table, *tables) if each not in ids]:
                raise NoSuchFile(f"there is no table {', '.join(missing)}; nothing was removed")
            for each in dict.fromkeys((table, *tables)):
                await uploads.remove(api, token, ids[each])
    return ending.status


@asynccontextmanager
async def _logged_in(account: Account) -> AsyncIterator[tuple[Api, Credentials]]:
    url = account.url
    async with open_api(url) as api:
        yield api, await authenticate(api, url, account.email, account.password, register=False)


def _print(file: uploads.File) -> None:
    sys.stdout.write(f"{clean(uploads.line_of(file))}\n")


def _complain(path: Path, text: str) -> None:
    error_line(text if text.startswith(str(path)) else f"{path}: {text}")
