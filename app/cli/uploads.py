"""Uploaded files as a client sees them: sent, listed, removed, shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from app.cli.client import read

if TYPE_CHECKING:
    from pathlib import Path

    from app.cli.client import Api

FILES: Final = "/v1/files"
MOST_COLUMNS: Final = 8
"""Columns of one table that are named; the agent knows them all."""


@attrs.frozen
class Column:
    """A column of an uploaded table."""

    name: str
    type: str


@attrs.frozen
class File:
    """An uploaded file; `table` is what the analyst calls it."""

    file_id: str
    name: str
    table: str
    bytes: int
    rows: int
    columns: list[Column]


@attrs.frozen
class _Files:
    files: list[File]


async def upload(api: Api, token: str, path: Path) -> File:
    """Send a file for the analyst.

    Raises:
        NoSuchFile: it cannot be read.
        Refused: it is no table, or there would be too much.
    """
    return read(await api.call("POST", FILES, token=token, file=path), File)


async def listed(api: Api, token: str) -> list[File]:
    """Return the files, oldest first."""
    return read(await api.call("GET", FILES, token=token), _Files).files


async def remove(api: Api, token: str, file_id: str) -> None:
    """Remove a file for good."""
    await api.call("DELETE", f"{FILES}/{file_id}", token=token)


def line_of(file: File) -> str:
    """Return what a person is shown of a file: the table, what it was made of, and its first columns."""
    columns = ", ".join(column.name for column in file.columns[:MOST_COLUMNS])
    more = len(file.columns) - MOST_COLUMNS
    return (
        f"{file.table}  {file.rows} rows  {file.name}  ({columns}{f', and {more} more' if more > 0 else ''})"
    )
