"""The tool that searches what its user wrote and was answered before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from app.store.history import search
from app.tools.schema import Parameters, Tool

if TYPE_CHECKING:
    from app.tools.schema import ToolContext


class SearchParameters(Parameters, frozen=True):
    """The words to look for, and how many messages to return."""

    query: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=500,
            description='Words that must all occur; "quoted phrase", -without, or.',
        ),
    ]
    limit: Annotated[int, Meta(ge=1, le=20, description="How many messages at most, newest first.")] = 5


async def search_messages(tool: ToolContext, parameters: SearchParameters) -> dict[str, Any]:
    """Return the user's messages that contain the words, newest first, each with a snippet.

    Whose messages is decided by row-level security in the database, from the context; the message that
    asks is left out, or every search would find itself.
    """
    found = await search(tool.database, parameters.query, run_id=tool.context.run_id, limit=parameters.limit)
    return {
        "found": len(found),
        "messages": [
            {
                "message_id": message.message_id,
                "thread_id": message.thread_id,
                "role": message.role,
                "created_at": message.created_at.isoformat(),
                "snippet": message.snippet,
            }
            for message in found
        ],
    }


SEARCH_MESSAGES: Final = Tool(
    "search_messages",
    "Search this user's earlier messages and the answers to them, in all of their conversations.",
    SearchParameters,
    search_messages,
)
