"""Statements as values, and how their parameters and rows look on the wire.

Parameters go out as text without a type, so the server infers each from its place: `WHERE run_id = $1` is a
uuid, `unnest($1::text[])` says it itself. One SQL text is therefore always one prepared statement.
"""

from __future__ import annotations

import re
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import attrs
import psycopg
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.types.string import TextLoader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from psycopg import BaseConnection
    from psycopg.pq.abc import PGresult

Row = tuple[Any, ...]
"""One row. uuid and text are str, timestamptz an aware datetime, jsonb what its JSON says, arrays are lists."""


@attrs.frozen
class Statement:
    """One SQL statement with parameters `$1`, `$2`, ...

    Parameters may be None, bool, int, float, str (also for uuid and jsonb), bytes, an aware datetime, or a
    list or tuple of these for an array.
    """

    sql: str
    params: Sequence[Any] = ()


# -- parameters --------------------------------------------------------------------------------------


def encode(params: Sequence[Any]) -> tuple[list[bytes | None], list[int] | None]:
    """Return values and formats (None: all text) as libpq takes them.

    Raises:
        TypeError: a parameter is of a type that is not listed at `Statement`, or a datetime without a zone.
        ValueError: a text holds NUL or a lone surrogate, which PostgreSQL cannot store.
    """
    values = [None if value is None else _encoder(value)(value) for value in params]
    if bytes in map(type, params):  # bytes travel as they are; in text they would double in size
        return values, [int(type(value) is bytes) for value in params]
    return values, None


def _encoder(value: Any) -> Callable[[Any], bytes]:
    kind = type(value)
    found = _ENCODERS.get(kind)
    if found is not None:
        return found
    for base, encoder in _ENCODERS.items():  # subclasses, such as an enum of strings
        if isinstance(value, base) and base is not bytes:
            return encoder
    raise TypeError(f"no SQL parameter can be made of {kind.__name__}")


def _text(value: str) -> bytes:
    if "\0" in value:
        raise ValueError("text for the database holds NUL")
    return str.encode(value)


def _moment(value: datetime) -> bytes:
    if value.tzinfo is None:
        raise TypeError("a datetime for the database needs a time zone")
    return value.isoformat().encode()


def _array(values: Sequence[Any]) -> bytes:
    return b"{" + b",".join(map(_element, values)) + b"}"


def _element(value: Any) -> bytes:
    if value is None:
        return b"NULL"
    if isinstance(value, (list, tuple)):
        return _array(value)
    text = b"\\x" + value.hex().encode() if type(value) is bytes else _encoder(value)(value)
    return b'"' + text.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


_ENCODERS: Final[Mapping[type, Callable[[Any], bytes]]] = MappingProxyType(
    {
        str: _text,
        bool: lambda value: b"t" if value else b"f",
        int: lambda value: b"%d" % value,
        float: lambda value: repr(float(value)).encode(),
        bytes: lambda value: value,
        datetime: _moment,
        list: _array,
        tuple: _array,
        UUID: lambda value: str(value).encode(),
    }
)


def columns(rows: Sequence[attrs.AttrsInstance]) -> tuple[list[Any], ...]:
    """Return at least one row, all of one attrs class, as a list for each field: the arrays that `unnest` takes."""
    return tuple([getattr(row, field.name) for row in rows] for field in attrs.fields(type(rows[0])))


# -- rows --------------------------------------------------------------------------------------------


class _Adaptation:
    """What psycopg's transformer asks for: which type is loaded how, apart from any psycopg connection."""

    connection: BaseConnection[Any] | None = None

    def __init__(self) -> None:
        self.adapters = AdaptersMap(psycopg.adapters)
        self.adapters.register_loader("uuid", TextLoader)  # ids are strings everywhere in our code


class RowLoader:
    """Turns results into rows; one per connection, because it remembers the loaders it has met."""

    def __init__(self) -> None:
        self._transformer = Transformer(_Adaptation())

    def rows(self, result: PGresult) -> list[Row]:
        """Return the rows of a result, `[]` for a statement that returns none."""
        if not result.ntuples:
            return []
        self._transformer.set_pgresult(result)
        try:
            return self._transformer.load_rows(0, result.ntuples, tuple)
        finally:
            self._transformer.set_pgresult(None)  # do not keep a large result alive in an idle connection


# -- what a statement may do -------------------------------------------------------------------------

_COMMENTS: Final = r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*"
_PLAIN: Final = re.compile(
    _COMMENTS + r"(?:select|values|table|with|insert|update|delete|merge|begin|commit|rollback)\b",
    re.IGNORECASE | re.DOTALL,
)
_READING: Final = re.compile(_COMMENTS + r"(?:select|values|table|show)\b", re.IGNORECASE | re.DOTALL)
# Functions whose effect outlives the transaction. The locks of pg_advisory_xact_lock do not.
# Nor does a set_config whose last argument is a plain `true`.
_LASTING: Final = re.compile(
    r"\bset_config\b(?!\s*\([^()]*,\s*true\s*\))|\bpg_(?:try_)?advisory_lock|\bdblink|\bsetseed\b",
    re.IGNORECASE,
)


def leaves_no_trace(sql: str) -> bool:
    """Whether nothing of this statement stays in the session once its transaction is over.

    True only for the plain commands that name no function with a lasting effect; everything else (SET, LISTEN,
    CREATE TEMP TABLE, DECLARE, DO, CALL, ...) is taken to leave a trace. `SELECT ... INTO` is told apart by
    its result. A function of the schema that changes its session would escape: the schema must have none.
    """
    return _PLAIN.match(sql) is not None and _LASTING.search(sql) is None


def only_reads(sql: str) -> bool:
    """Whether this statement can be run twice without harm: a query that calls no function with a lasting effect."""
    return _READING.match(sql) is not None and _LASTING.search(sql) is None
