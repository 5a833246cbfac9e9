"""From a user's rows to a worker thread and back: nothing of a call is left when it has ended."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from app.errors import NotFound
from app.store import files as store
from app.tools.analysis.duck import BadQuery, Duck, Result, Source, tables_of
from app.tools.threads import ToolThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from app.store.files import File
    from app.tools.analysis.settings import FileSettings
    from nurseries.postgres.scoped import ScopedDatabase

T = TypeVar("T")
MAX_SQL: Final = 10_000


class Workbench:
    """Analyses files of any user, one call at a time for each; it keeps nothing of a call.

    Attributes:
        settings: bounds.
    """

    def __init__(self, settings: FileSettings) -> None:
        self.settings = settings
        self._threads = ToolThreads(total=settings.queries, per_user=1)

    async def describe(self, user_id: str, kind: str, path: Path) -> tuple[list[tuple[str, str]], int]:
        """Return the columns and the number of rows of a file that is not stored yet.

        Raises:
            BadFile: it cannot be read.
        """
        duck = Duck(self.settings)
        return await self._run(user_id, duck, duck.describe, Source("file", kind, path))

    async def profile(self, database: ScopedDatabase, user_id: str, table: str) -> tuple[File, Result]:
        """Return what can be said of each column of one of the user's tables.

        Raises:
            NotFound: the user has no such table.
        """
        found = [file for file in await store.all_of_user(database) if file.table == table]
        if not found:
            raise NotFound(f"there is no table {table!r}")
        duck = Duck(self.settings)
        with _directory() as directory:
            (source,) = await _write(database, found, directory)
            return found[0], await self._run(user_id, duck, duck.profile, source)

    async def query(self, database: ScopedDatabase, user_id: str, sql: str) -> Result:
        """Run one SELECT over the user's tables; only those that it names are read.

        Raises:
            BadQuery: it cannot be run.
        """
        if len(sql) > MAX_SQL:
            raise BadQuery(f"longer than {MAX_SQL} characters")
        named = {name.lower() for name in await self._threads.run(user_id, tables_of, self.settings, sql)}
        files = [file for file in await store.all_of_user(database) if file.table.lower() in named]
        duck = Duck(self.settings)
        with _directory() as directory:
            sources = await _write(database, files, directory)
            return await self._run(user_id, duck, duck.query, sources, sql)

    async def _run(self, user_id: str, duck: Duck, function: Callable[..., T], *args: Any) -> T:
        """Work in a thread; where it is cancelled the query is interrupted, and the thread waited for."""
        result: T = await self._threads.run(user_id, function, *args, interrupt=duck.interrupt)
        return result


@contextmanager
def _directory() -> Iterator[Path]:
    """Have a directory that nobody else can look into, gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="nurseries-files-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _write(database: ScopedDatabase, files: Sequence[File], directory: Path) -> list[Source]:
    """Write the files into the directory."""
    sources = [Source(file.table, file.kind, directory / file.file_id) for file in files]
    for source, file in zip(sources, files, strict=True):
        with source.path.open("wb") as target:  # into the page cache, a piece at a time
            for number in store.pieces_of(file):
                target.write(await store.piece(database, file, number))
    return sources
