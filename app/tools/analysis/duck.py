"""DuckDB, as it is used in a process of its own: a connection in memory for one call, closed to everything else.

The tables are read from files that we wrote. Then the connection loses, for good, the right to read or write
anything outside of its memory (`enable_external_access`, `lock_configuration`;
https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview), and only then somebody's SQL is run.
"""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import attrs

from app.errors import InvalidField
from nurseries.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from duckdb import DuckDBPyConnection

MAX_COLUMNS: Final = 500
MAX_MESSAGE: Final = 500
MAX_TEXT: Final = 2000
"""Characters of one value that are shown."""

MAX_NAMES: Final = 256 * 1024
"""Characters of the names and types of all columns of a file."""

MAX_ROWS: Final = 1024 * 1024
"""Characters of the rows of a result, about; a tool's result keeps far less."""

_MAX_INTEGER: Final = 2**53  # beyond it a JSON number loses digits in JavaScript

_RESULT: Final = "nurseries_result"
_SHORT: Final = frozenset(
    {
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
        "DATE",
        "TIME",
        "TIMESTAMP",
    }
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
    path: str


@attrs.frozen
class Result:
    """What a query returned: column names with their types, rows as JSON values, and whether there are more."""

    columns: tuple[tuple[str, str], ...]
    rows: list[list[Any]]
    truncated: bool


@attrs.frozen
class Duck:
    """Makes a connection for each call.

    Attributes:
        memory: bytes that a query may take.
        rows: of a result that are told.
    """

    memory: int
    rows: int

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
            if sum(len(name) + len(kind) for name, kind in columns) > MAX_NAMES:
                raise BadFile("file", f"the names of its columns are longer than {MAX_NAMES} characters")
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
            return self._result(connection, sql, self.rows)

    @contextmanager
    def _loaded(self, sources: Sequence[Source]) -> Iterator[DuckDBPyConnection]:
        with self._connect() as connection:
            for source in sources:
                self._load(connection, source)
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection

    def _load(self, connection: DuckDBPyConnection, source: Source) -> None:
        import duckdb  # noqa: PLC0415  # as above

        reader = READERS[source.kind]
        try:
            connection.execute(
                f"CREATE TABLE {quoted(source.table)} AS SELECT * FROM {reader}",  # noqa: S608  # quoted, and ours
                [source.path],
            )
        except duckdb.OutOfMemoryException:
            raise BadFile("file", f"unpacked it takes more than {self.memory} bytes") from None
        except duckdb.Error as error:
            raise BadFile("file", _words(error).replace(source.path, source.table)) from None

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
            raise BadQuery(f"it needs more than {self.memory} bytes of memory") from None
        except duckdb.Error as error:
            raise BadQuery(_words(error)) from None
        told: list[list[Any]] = []
        room = MAX_ROWS
        for row in rows[:most]:
            values = [_json(value) for value in row]
            room -= sum(len(str(value)) for value in values)
            if room < 0:
                break
            told.append(values)
        return Result(tuple(columns), told, len(rows) > len(told))

    def tables(self, sql: str) -> list[str]:
        """Return the names that a query reads from.

        Raises:
            BadQuery: it is not one SELECT.
        """
        import duckdb  # noqa: PLC0415  # as above

        with self._connect() as connection:
            connection.execute("SET enable_external_access = false")
            try:
                statements = connection.extract_statements(sql)
                if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                    raise BadQuery("only a single SELECT can be run here")
                return sorted(connection.get_table_names(sql))
            except duckdb.Error as error:
                raise BadQuery(_words(error)) from None

    def _connect(self) -> DuckDBPyConnection:
        import duckdb  # noqa: PLC0415  # only where it is used, which is not in the server's process

        config: dict[str, Any] = {
            "memory_limit": f"{self.memory}B",
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
    if kind in _SHORT or re.fullmatch(r"DECIMAL\(\d+,\d+\)", kind):
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
    small = isinstance(value, int) and abs(value) <= _MAX_INTEGER
    return value if value is None or small or isinstance(value, str | float) else str(value)
