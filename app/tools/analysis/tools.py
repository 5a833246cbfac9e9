"""The tools of the analyst. Whose files they see is decided by row-level security, from the context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from app.tools.analysis.workbench import MAX_SQL
from app.tools.schema import Parameters, Tool

if TYPE_CHECKING:
    from app.tools.analysis.workbench import Workbench
    from app.tools.schema import ToolContext

QUERY, PROFILE = "query_files", "profile_file"


class QueryParameters(Parameters, frozen=True):
    """The query."""

    sql: Annotated[
        str,
        Meta(
            min_length=1, max_length=MAX_SQL, description="One SELECT in DuckDB's SQL over the user's tables."
        ),
    ]


class ProfileParameters(Parameters, frozen=True):
    """The table."""

    table: Annotated[
        str, Meta(min_length=1, max_length=200, description="The name of one of the user's tables.")
    ]


def analysis_tools(workbench: Workbench) -> tuple[Tool, ...]:
    """Return the tools."""

    async def query(tool: ToolContext, parameters: QueryParameters) -> dict[str, Any]:
        result = await workbench.query(tool.database, tool.context.user_id, parameters.sql)
        return {
            "sql": parameters.sql,
            "columns": [name for name, _ in result.columns],
            "rows": result.rows,
            "truncated": result.truncated,
        }

    async def profile(tool: ToolContext, parameters: ProfileParameters) -> dict[str, Any]:
        file, result = await workbench.profile(tool.database, tool.context.user_id, parameters.table)
        return {
            "table": file.table,
            "file": file.name,
            "row_count": file.rows,
            "columns": [name for name, _ in result.columns],
            "rows": result.rows,
            "truncated": result.truncated,
        }

    seconds = workbench.settings.query_seconds
    return (
        Tool(
            QUERY,
            "Run one SELECT over the tables of this user's files and return the first rows of the result.",
            QueryParameters,
            query,
            seconds=seconds,
        ),
        Tool(
            PROFILE,
            "Describe each column of one table: type, smallest and largest value, distinct values, share of nulls.",
            ProfileParameters,
            profile,
            seconds=seconds,
        ),
    )
