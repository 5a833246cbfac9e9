"""What the offline model does for the analyst: it runs what follows `sql:`, and else profiles each table."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from app.engine.model import ToolCall

if TYPE_CHECKING:
    from app.engine.model import Conversation

QUERY: Final = "query_files"
PROFILE: Final = "profile_file"
MOST_PROFILES: Final = 8
SHOWN: Final = ("column_name", "column_type", "min", "max", "approx_unique", "null_percentage")
"""The columns of a profile that are shown; DuckDB has more."""

_SQL: Final = re.compile(r"\s*sql:(.*)", re.IGNORECASE | re.DOTALL)
_TABLE: Final = re.compile(r"^- (\S+) \(\d+ rows", re.MULTILINE)


def analysis_calls(message: str, conversation: Conversation) -> list[ToolCall]:
    """Return the calls of the analyst's tools that a message asks for; none, where there are no such tools."""
    if not {QUERY, PROFILE} <= {tool.name for tool in conversation.tools}:
        return []
    asked = _SQL.fullmatch(message)
    if asked is not None and asked[1].strip():
        return [ToolCall("call_1", QUERY, {"sql": asked[1].strip()})]
    tables = _TABLE.findall(conversation.system)[:MOST_PROFILES]
    return [ToolCall(f"call_{number}", PROFILE, {"table": table}) for number, table in enumerate(tables, 1)]


def analysis_outcome(tool: str, value: dict[str, Any]) -> str:
    """Return the result of one of the analyst's tools in Markdown."""
    if tool == PROFILE:
        kept = [index for index, name in enumerate(value["columns"]) if name in SHOWN]
        rows = [[row[index] for index in kept] for row in value["rows"]]
        title = f"**{value['table']}** ({value['file']}, {value['row_count']} rows)"
        return "\n\n".join([title, _table([value["columns"][index] for index in kept], rows)])
    more = "\n\nThere are more rows." if value["truncated"] else ""
    return f"```sql\n{value['sql']}\n```\n\n{_table(value['columns'], value['rows'])}{more}"


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    if not rows:
        return f"No rows ({', '.join(columns)})."
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
