"""DuckDB, as it is used in a worker thread: a connection in memory for one call, closed to everything else.

The tables are read from files that we wrote. Then the connection loses, for good, the right to read or write
anything outside of its memory (`enable_external_access`, `lock_configuration`;
https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview), and only then somebody's SQL is run.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs

from app.errors import InvalidField
from nurseries.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from duckdb import DuckDBPyConnection

    from app.tools.analysis.settings import FileSettings

MAX_COLUMNS: Final = 500
MAX_MESSAGE: Final = 500
MAX_TEXT: Final = 2000
"""Characters of one value that are shown."""

_RESULT: Final = "nurseries_result"
_SHORT: Final = (
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
    "DATE",
    "TIME",
)
READERS: Final[Mapping[str, str]] = MappingProxyType(
    {"csv": "read_csv(?, sample_size = 20480)", "parquet": "read_parquet(?)"}
)


class BadQuery(CallerError):
    """SQL that cannot be run; the message is DuckDB's, or says what is not allowed."""

    code = "bad_query"


class BadFile(InvalidField):
    """A file that cannot be read as a table; the message is DuckDB's, or says what is too large."""

    code = "bad_file"


@attrs.frozen
class Source:
    """A table and the file that it is read from."""

    table: str
    kind: str
    path: Path


@attrs.frozen
class Result:
    """What a query returned: column names with their types, rows as JSON values, and whether there are more."""

    columns: tuple[tuple[str, str], ...]
    rows: list[list[Any]]
    truncated: bool


class Duck:
    """A connection, from its making to its end. `interrupt` may be called from any thread."""

    def __init__(self, settings: FileSettings) -> None:
        self._settings = settings
        self._connection: DuckDBPyConnection | None = None
        self._interrupted = False

    def interrupt(self) -> None:
        """End what runs now, and everything that comes after it."""
        self._interrupted = True
        connection = self._connection
        if connection is not None:
            connection.interrupt()

    def describe(self, source: Source) -> tuple[list[tuple[str, str]], int]:
        """Return the columns of a file and how many rows it has.

        Raises:
            BadFile: it cannot be read.
        """
        with self._loaded([source]) as connection:
            columns = [
                (str(name), str(kind))
                for name, kind, *_ in connection.execute(f"DESCRIBE {quoted(source.table)}").fetchall()
            ]
            if len(columns) > MAX_COLUMNS:
                raise BadFile("file", f"it has {len(columns)} columns; at most {MAX_COLUMNS} are taken")
            counted = connection.execute(f"SELECT count(*) FROM {quoted(source.table)}").fetchone()  # noqa: S608  # quoted
            assert counted is not None
            return columns, int(counted[0])

    def profile(self, source: Source) -> Result:
        """Return one row for each column of a table: its type, range, distinct values and share of nulls."""
        with self._loaded([source]) as connection:
            return self._result(connection, f"SUMMARIZE {quoted(source.table)}", MAX_COLUMNS)

    def query(self, sources: Sequence[Source], sql: str) -> Result:
        """Run one SELECT over the tables.

        Raises:
            BadQuery: it is not one SELECT, or DuckDB refuses it.
        """
        with self._loaded(sources) as connection:
            return self._result(connection, sql, self._settings.rows)

    @contextmanager
    def _loaded(self, sources: Sequence[Source]) -> Iterator[DuckDBPyConnection]:
        with _connect(self._settings) as connection:
            self._connection = connection
            try:
                self._check()
                for source in sources:
                    self._load(connection, source)
                    self._check()
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
                yield connection
            finally:
                self._connection = None

    def _load(self, connection: DuckDBPyConnection, source: Source) -> None:
        import duckdb  # noqa: PLC0415  # as above

        reader = READERS[source.kind]
        try:
            connection.execute(
                f"CREATE TABLE {quoted(source.table)} AS SELECT * FROM {reader}",  # noqa: S608  # quoted, and ours
                [str(source.path)],
            )
        except duckdb.OutOfMemoryException:
            raise BadFile("file", f"unpacked it takes more than {self._settings.memory} bytes") from None
        except duckdb.Error as error:
            self._check()
            raise BadFile("file", _words(error).replace(str(source.path), source.table)) from None

    def _result(self, connection: DuckDBPyConnection, sql: str, most: int) -> Result:
        import duckdb  # noqa: PLC0415  # as above

        try:
            # First into a table, within the limit of memory; then no value is fetched that is too long.
            connection.execute(
                f"CREATE TEMP TABLE {_RESULT} AS FROM (\n{sql.rstrip().rstrip(';')}\n) LIMIT {most + 1}"
            )
            columns = [
                (str(name), str(kind))
                for name, kind, *_ in connection.execute(f"DESCRIBE {_RESULT}").fetchall()
            ]
            shown = ", ".join(_shortened(name, kind) for name, kind in columns)
            rows = connection.execute(f"SELECT {shown} FROM {_RESULT}").fetchall()  # noqa: S608  # quoted
        except duckdb.OutOfMemoryException:
            raise BadQuery(f"it needs more than {self._settings.memory} bytes of memory") from None
        except duckdb.Error as error:
            self._check()
            raise BadQuery(_words(error)) from None
        return Result(
            tuple(columns), [[_json(value) for value in row] for row in rows[:most]], len(rows) > most
        )

    def _check(self) -> None:
        """An interrupt between two statements is not seen by DuckDB."""
        if self._interrupted:
            raise BadQuery("it was interrupted")


def tables_of(settings: FileSettings, sql: str) -> set[str]:
    """Return the names that a query reads from.

    Raises:
        BadQuery: it is not one SELECT.
    """
    import duckdb  # noqa: PLC0415  # as above

    with _connect(settings) as connection:
        connection.execute("SET enable_external_access = false")
        try:
            statements = connection.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise BadQuery("only a single SELECT can be run here")
            return set(connection.get_table_names(sql))
        except duckdb.Error as error:
            raise BadQuery(_words(error)) from None


def _connect(settings: FileSettings) -> DuckDBPyConnection:
    import duckdb  # noqa: PLC0415  # a fifth of a second, for those who use it

    config: dict[str, Any] = {
        "memory_limit": f"{settings.memory}B",
        "threads": 1,
        "temp_directory": "",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
    }
    return duckdb.connect(":memory:", config=config)


def _shortened(name: str, kind: str) -> str:
    """Return a column as it is fetched: what may be long as text of a bounded length."""
    column = quoted(name)
    if kind.startswith(_SHORT):
        return column
    text = f"CAST({column} AS VARCHAR)"
    return f"CASE WHEN length({text}) > {MAX_TEXT} THEN left({text}, {MAX_TEXT}) || '…' ELSE {text} END"


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _words(error: Exception) -> str:
    return str(error)[:MAX_MESSAGE]


def _json(value: Any) -> Any:
    """Return what JSON can say of a value; numbers that it cannot are text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
