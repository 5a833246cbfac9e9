"""From a user's rows to a process of DuckDB's and back: nothing of a call is left when it has ended."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from app.errors import NotFound
from app.store import files as store
from app.tools.analysis.child import Order
from app.tools.analysis.duck import BadFile, BadQuery, Source
from app.tools.analysis.process import START_SECONDS, open_duck
from nurseries.budgets import Budget, BudgetLimits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from app.store.files import File
    from app.tools.analysis.duck import Result
    from app.tools.analysis.process import DuckProcess
    from app.tools.analysis.settings import FileSettings
    from nurseries.postgres.scoped import ScopedDatabase

MAX_SQL: Final = 10_000


class Workbench:
    """Analyses files of any user, one call at a time for each; it keeps nothing of a call.

    Attributes:
        settings: bounds.
    """

    def __init__(self, settings: FileSettings) -> None:
        self.settings = settings
        limits = BudgetLimits(total=settings.queries, per_user=1, wait_seconds=settings.query_seconds)
        self._budget = Budget(limits, name="queries of files")

    async def describe(self, user_id: str, kind: str, path: Path) -> tuple[list[tuple[str, str]], int]:
        """Return the columns and the number of rows of a file that is not stored yet.

        Raises:
            BadFile: it cannot be read.
        """
        async with self._duck(user_id) as duck:
            with trio.move_on_after(self.settings.query_seconds + START_SECONDS):
                reply = await duck.ask(Order(do="describe", sources=[Source("file", kind, str(path))]))
                return reply.columns, reply.rows
        raise BadFile("file", f"reading it takes more than {self.settings.query_seconds:g} seconds")

    async def profile(self, database: ScopedDatabase, user_id: str, table: str) -> tuple[File, Result]:
        """Return what can be said of each column of one of the user's tables.

        Raises:
            NotFound: the user has no such table.
        """
        found = [file for file in await store.all_of_user(database) if file.table == table]
        if not found:
            raise NotFound(f"there is no table {table!r}")
        async with self._duck(user_id) as duck:
            with _directory() as directory:
                sources = await _write(database, found, directory)
                reply = await duck.ask(Order(do="profile", sources=sources))
        assert reply.result is not None
        return found[0], reply.result

    async def query(self, database: ScopedDatabase, user_id: str, sql: str) -> Result:
        """Run one SELECT over the user's tables; only those that it names are read.

        Raises:
            BadQuery: it cannot be run.
        """
        if len(sql) > MAX_SQL:
            raise BadQuery(f"longer than {MAX_SQL} characters")
        async with self._duck(user_id) as duck:
            named = {name.lower() for name in (await duck.ask(Order(do="tables", sql=sql))).tables}
            files = [file for file in await store.all_of_user(database) if file.table.lower() in named]
            with _directory() as directory:
                sources = await _write(database, files, directory)
                reply = await duck.ask(Order(do="query", sql=sql, sources=sources))
        assert reply.result is not None
        return reply.result

    @asynccontextmanager
    async def _duck(self, user_id: str) -> AsyncIterator[DuckProcess]:
        """Have a process, once there is a place for it: the user's own first, then one of all."""
        async with self._budget.lease(user_id), open_duck(self.settings) as duck:
            yield duck


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
    sources = []
    for file in files:
        path = directory / file.file_id
        with path.open("wb") as target:  # into the page cache, a piece at a time
            for number in store.pieces_of(file):
                target.write(await store.piece(database, file, number))  # each is waited for
        sources.append(Source(file.table, file.kind, str(path)))
    return sources
