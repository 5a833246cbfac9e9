"""Files that users uploaded, as their user sees them. Contents go in and out in pieces."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # msgspec reads the annotations at run time
from typing import TYPE_CHECKING, Final

import attrs
import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nurseries.postgres.scoped import ScopedDatabase

PIECE_BYTES: Final = 1024 * 1024


@attrs.frozen
class Column:
    """A column of a table: its name, and its type in SQL."""

    name: str
    type: str


@attrs.frozen
class File:
    """A file as the protocol shows it; `table` is what it is called in SQL."""

    file_id: str
    name: str
    table: str
    kind: str
    bytes: int
    rows: int
    columns: tuple[Column, ...]
    created_at: datetime


_COLUMNS: Final = "file_id::text, name, table_name, kind, bytes, row_count, columns::text, created_at"
_decode: Final = msgspec.json.Decoder(tuple[Column, ...]).decode


async def add(
    database: ScopedDatabase, file: File, pieces: Iterable[bytes], *, most_files: int, most_bytes: int
) -> File | None:
    """Store a file, all of it or nothing. If its table's name is taken it gets a number behind it.

    Args:
        database: of its user.
        file: what is known of it; `created_at` and perhaps `table` become what the database says.
        pieces: its contents.
        most_files: that the user may have in all.
        most_bytes: that they may have in all.

    Returns:
        The file as it was stored; None if the user would have too much.
    """
    async with database.transaction() as transaction:
        # One upload of a user is added at a time, or two together could be too much.
        await transaction.fetch(
            "SELECT pg_advisory_xact_lock(hashtextextended('files:' || app_user_id()::text, 0))"
        )
        taken = await transaction.fetch("SELECT table_name, bytes FROM files")
        if len(taken) >= most_files or sum(size for _, size in taken) + file.bytes > most_bytes:
            return None
        table = _free(file.table, {name for name, _ in taken})
        ((created_at,),) = await transaction.fetch(
            "INSERT INTO files (file_id, user_id, name, table_name, kind, bytes, row_count, columns)"
            " VALUES ($1, app_user_id(), $2, $3, $4, $5, $6, $7::jsonb) RETURNING created_at",
            file.file_id,
            file.name,
            table,
            file.kind,
            file.bytes,
            file.rows,
            msgspec.json.encode(file.columns).decode(),
        )
        for number, data in enumerate(pieces):
            await transaction.fetch(
                "INSERT INTO file_pieces (file_id, number, user_id, data) VALUES ($1, $2, app_user_id(), $3)",
                file.file_id,
                number,
                data,
            )
    return attrs.evolve(file, table=table, created_at=created_at)


def _free(name: str, taken: set[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


async def all_of_user(database: ScopedDatabase) -> list[File]:
    """Return the user's files, oldest first."""
    rows = await database.fetch(f"SELECT {_COLUMNS} FROM files ORDER BY created_at, file_id")
    return [File(row[0], row[1], row[2], row[3], row[4], row[5], _decode(row[6]), row[7]) for row in rows]


async def delete(database: ScopedDatabase, file_id: str) -> bool:
    """Remove a file; False where the user has no such file."""
    return await database.execute("DELETE FROM files WHERE file_id = $1", file_id) > 0


def pieces_of(file: File) -> range:
    """Return the numbers of the pieces that a file's contents are in."""
    return range(-(-file.bytes // PIECE_BYTES))


async def piece(database: ScopedDatabase, file: File, number: int) -> bytes:
    """Return a piece of a file; nothing, if the file was deleted meanwhile."""
    row = await database.fetch_one(
        "SELECT data FROM file_pieces WHERE file_id = $1 AND number = $2", file.file_id, number
    )
    return b"" if row is None else bytes(row[0])
