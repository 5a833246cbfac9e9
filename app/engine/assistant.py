"""The agent that people talk to: a model and the built-in tools."""

from __future__ import annotations

from typing import ClassVar

from app.engine.agent import Agent


class Assistant(Agent):
    """A loop between the model and the tools."""

    name: ClassVar[str] = "assistant"
    description: ClassVar[str] = (
        "Answers with a language model; it can calculate, tell the time and search your messages."
    )
    system: ClassVar[str] = (
        "You are a helpful assistant. Answer in the language of the user, briefly and truthfully. Use the calculator"
        " for arithmetic, the clock for the time, and search_messages for what was said in other conversations."
    )
    tools: ClassVar[tuple[str, ...]] = ("calculator", "search_messages", "clock")
    resumable: ClassVar[bool] = True
