"""A conversation as Anthropic's API is told it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from app.engine.model import ModelTurn, ToolTurn, UserTurn
from app.engine.models.answer import unseal
from app.engine.models.turns import call_names, result_text
from app.engine.models.window import fit

if TYPE_CHECKING:
    from app.engine.model import Conversation, Turn
    from app.engine.models.settings import ModelSettings

MAX_TOKENS: Final = 8192
"""The limit that is sent where none is configured: this API wants one."""


def request_of(conversation: Conversation, settings: ModelSettings) -> dict[str, Any]:
    """Return what the SDK is called with."""
    conversation = fit(conversation, settings.input_tokens)
    options = dict(settings.options)
    if not _thinking_can_go_on(conversation.turns, settings.name):
        options.pop("thinking", None)
    body: dict[str, Any] = {
        "model": settings.model,
        "max_tokens": settings.max_output_tokens or MAX_TOKENS,
        "messages": messages_of(conversation.turns, settings.name),
        "stream": True,
        "extra_body": options,
    }
    if conversation.system:
        body["system"] = conversation.system
    if conversation.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
            for tool in conversation.tools
        ]
    return body


def messages_of(turns: tuple[Turn, ...], owner: str) -> list[dict[str, Any]]:
    """Return the turns as messages; `owner` is the model that reads them."""
    messages: list[dict[str, Any]] = []
    names = call_names(turns)
    asked: list[str] = []
    for position, turn in enumerate(turns):
        match turn:
            case UserTurn():
                role, blocks = "user", _text(turn.text)
            case ModelTurn():
                asked = names.get(position, [])
                role, blocks = "assistant", _said(turn, asked, owner)
            case ToolTurn():
                role = "user"
                blocks = [
                    {
                        "type": "tool_result",
                        "tool_use_id": name,
                        "content": result_text(result),
                        "is_error": not result.ok,
                    }
                    for name, result in zip(asked, turn.results, strict=False)
                ]
        if blocks:  # an empty message is refused
            messages.append({"role": role, "content": blocks})
    return messages


def _said(turn: ModelTurn, names: list[str], owner: str) -> list[dict[str, Any]]:
    thought = unseal(owner, turn.calls[0].opaque) if turn.calls else None
    calls = [
        {
            "type": "tool_use",
            "id": name,
            "name": call.tool,
            "input": call.arguments if isinstance(call.arguments, dict) else {},
        }
        for name, call in zip(names, turn.calls, strict=True)
    ]
    return [*(thought or []), *_text(turn.text), *calls]


def _text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text.strip() else []


def _thinking_can_go_on(turns: tuple[Turn, ...], owner: str) -> bool:
    """Say whether thinking may be on: it is refused while calls are open whose own thinking is not sent along.

    It is missing where another model made the calls, where it was too long to keep, and where it was off.
    """
    for turn in reversed(turns):
        if isinstance(turn, UserTurn):
            break
        if isinstance(turn, ModelTurn) and turn.calls and not unseal(owner, turn.calls[0].opaque):
            return False
    return True
