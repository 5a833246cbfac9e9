"""`/v1/files`: what users upload for their analyst."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import trio
from quart import Blueprint, Response

from app.chat.calls import open_call
from app.chat.ids import known
from app.errors import Busy, InvalidField, NotFound, TooLarge
from app.store import files as store
from app.web.authentication import require_identity
from app.web.bodies import json_response, no_content
from app.web.uploads import FIELD, receive, upload_file
from nurseries.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from app.accounts.service import AccountService
    from app.tools.analysis.workbench import Workbench
    from nurseries.request import Kernel

FILES: Final = "/v1/files"
MAX_NAME: Final = 200
MAX_TABLE: Final = 40
RETRY_AFTER: Final = 5.0
_PARQUET: Final = b"PAR1"
_UNFIT: Final = re.compile(r"[^a-z0-9]+")


def files_blueprint(service: AccountService, kernel: Kernel, workbench: Workbench) -> Blueprint:
    """Return the routes of the files; errors are left to `install_problems`."""
    files = Blueprint("files", __name__)
    places = trio.Semaphore(workbench.settings.uploads)

    @files.post(FILES)
    async def upload() -> Response:
        identity = await require_identity(service)
        try:
            places.acquire_nowait()
        except trio.WouldBlock:
            raise Busy("too many files are being uploaded just now", retry_after=RETRY_AFTER) from None
        try:
            return json_response(await _upload(kernel, workbench, identity.user_id), 201)
        finally:
            places.release()

    @files.get(FILES)
    async def listing() -> Response:
        identity = await require_identity(service)
        async with open_call(kernel, identity.user_id) as call:
            return json_response({"files": await store.all_of_user(call.database)})

    @files.delete(f"{FILES}/<file_id>")
    async def delete(file_id: str) -> Response:
        identity = await require_identity(service)
        async with open_call(kernel, identity.user_id) as call:
            if not await store.delete(call.database, known(file_id, "file")):
                raise NotFound("no such file")
        return no_content()

    return files


async def _upload(kernel: Kernel, workbench: Workbench, user_id: str) -> store.File:
    """Take a file, read it as a table, and store it; nothing of it stays if any of this fails.

    Raises:
        InvalidField: there is no file, or it has no name that can be used.
        TooLarge: it is too large, or the user would have too much.
        BadFile: it is no table.
    """
    settings = workbench.settings
    with upload_file() as target:
        received = await receive(target, settings.bytes)
        name = received.name.strip()
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise InvalidField(FIELD, f"its name must have 1 to {MAX_NAME} printable characters")
        if not received.size:
            raise InvalidField(FIELD, "it is empty")
        kind = _kind(received.path)
        columns, rows = await workbench.describe(user_id, kind, received.path)
        file = store.File(
            file_id=new_id(),
            name=name,
            table=_table(name),
            kind=kind,
            bytes=received.size,
            rows=rows,
            columns=tuple(store.Column(*column) for column in columns),
            created_at=datetime.now(UTC),
        )
        async with open_call(kernel, user_id) as call:
            stored = await store.add(
                call.database,
                file,
                _pieces(received.path),
                most_files=settings.per_user,
                most_bytes=settings.bytes_per_user,
            )
    if stored is None:
        raise TooLarge(
            f"{settings.per_user} files with {settings.bytes_per_user} bytes in all are the most that a user has"
        )
    return stored


def _kind(path: Path) -> str:
    """Tell by the contents: Parquet says so in its first bytes, and everything else is tried as CSV."""
    with path.open("rb") as file:
        return "parquet" if file.read(len(_PARQUET)) == _PARQUET else "csv"


def _table(name: str) -> str:
    """Return what a file is called in SQL: `Sales 2026.csv` is `sales_2026`."""
    table = _UNFIT.sub("_", name.rpartition(".")[0].lower() or name.lower()).strip("_")[:MAX_TABLE]
    if not table:
        return "file"
    return table if table[0].isalpha() else f"t_{table}"


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(store.PIECE_BYTES):
            yield data
