"""The agent that answers questions about a user's files, in SQL that it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from app.engine.agent import Agent
from app.engine.loop import converse
from app.store import files as store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.engine.request import AgentRequest, Answer
    from app.store.files import File

NO_FILES: Final = "There is no file to analyse yet. Upload a CSV or Parquet file (`nurseries files add PATH`, or POST /v1/files), and ask again."
MAX_COLUMNS: Final = 50
"""Columns of one table that the model is told; the others it finds with a profile."""


class Analyst(Agent):
    """A loop between the model and SQL over the user's own files."""

    name: ClassVar[str] = "analyst"
    description: ClassVar[str] = (
        "Profiles your CSV and Parquet files and answers questions about them, with the SQL that it ran."
    )
    system: ClassVar[str] = (
        "You analyse the user's tables with SQL (DuckDB's dialect). Find every number with a query: never guess one."
        " Look at a table's profile before the first query on it. Show the SQL of the queries that your answer rests"
        " on, each in a ```sql block. If a query fails, mend it and try again. Answer in the language of the user, briefly."
    )
    tools: ClassVar[tuple[str, ...]] = ("query_files", "profile_file")
    resumable: ClassVar[bool] = True

    async def run(self, request: AgentRequest) -> Answer | str | None:
        """Answer the message."""
        files = await store.all_of_user(request.database)
        if not files:
            return NO_FILES
        return await converse(request, f"{self.system}\n\n{_described(files)}")


def _described(files: Sequence[File]) -> str:
    """Tell the model what tables there are."""
    lines = ["The user's tables:"]
    for file in files:
        columns = ", ".join(f"{column.name} {column.type}" for column in file.columns[:MAX_COLUMNS])
        more = "" if len(file.columns) <= MAX_COLUMNS else f", and {len(file.columns) - MAX_COLUMNS} more"
        lines.append(f"- {file.table} ({file.rows} rows, from {file.name!r}): {columns}{more}")
    return "\n".join(lines)
