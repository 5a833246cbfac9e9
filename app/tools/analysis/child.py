"""The program that DuckDB runs in: `python -m app.tools.analysis.child`, one for each call.

What somebody's SQL or file does to DuckDB, it does to this process: use memory that DuckDB does not count, compute for
hours without listening, crash. The system bounds its memory and its time, and whoever started it kills it.

Orders come in on standard input, one JSON object a line, and each is answered by one on standard output.
"""

from __future__ import annotations

import resource
import sys
from typing import Final, Literal

import attrs
import msgspec

from app.tools.analysis.duck import BadFile, BadQuery, Duck, Result, Source

OVERHEAD: Final = 1024 * 1024 * 1024
"""Bytes of address space besides what a query may take: the interpreter, DuckDB itself, and what it does not count."""


@attrs.frozen(kw_only=True)
class Order:
    """What is to be done: `sql` for `tables` and `query`, one source for `describe` and `profile`."""

    do: Literal["tables", "describe", "profile", "query"]
    sql: str = ""
    sources: list[Source] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class Reply:
    """What came of it, or why nothing did: `refused` says so to whoever asked, and `at_fault` which error that is."""

    tables: list[str] = attrs.field(factory=list)
    columns: list[tuple[str, str]] = attrs.field(factory=list)
    rows: int = 0
    result: Result | None = None
    refused: str = ""
    at_fault: Literal["", "file", "query"] = ""


def bound(memory: int, seconds: int) -> None:
    """Have the system end this process where it takes too much; it writes no file and leaves no core."""
    for what, most in (
        (resource.RLIMIT_AS, memory + OVERHEAD),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def carry_out(duck: Duck, order: Order) -> Reply:
    """Do what is ordered."""
    try:
        if order.do == "tables":
            return Reply(tables=duck.tables(order.sql))
        if order.do == "query":
            return Reply(result=duck.query(order.sources, order.sql))
        (source,) = order.sources
        if order.do == "profile":
            return Reply(result=duck.profile(source))
        columns, rows = duck.describe(source)
        return Reply(columns=columns, rows=rows)
    except BadFile as error:
        return Reply(refused=str(error).removeprefix(f"{error.field}: "), at_fault="file")
    except BadQuery as error:
        return Reply(refused=str(error), at_fault="query")


def main(memory: int, rows: int, seconds: int) -> None:
    """Carry out orders until there are no more."""
    bound(memory, seconds)
    duck = Duck(memory, rows)
    for line in sys.stdin.buffer:
        reply = carry_out(duck, msgspec.json.decode(line, type=Order))
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
