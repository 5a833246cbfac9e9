"""What may be registered as a tool, and what a model is told of it."""

from typing import Annotated

import msgspec
import pytest

from app.tools.registry import ToolRegistry
from app.tools.schema import Parameters, Tool


class Fine(Parameters, frozen=True):
    """What to do."""

    words: Annotated[str, msgspec.Meta(max_length=10, description="the words")]


async def function(_context, _parameters):
    """Do nothing."""


def tool(**changes):
    return Tool(
        **{"name": "fine", "description": "Fine.", "parameters": Fine, "function": function} | changes
    )


@pytest.mark.parametrize("field", ["user_id", "run_id", "request_id", "websocket_client_id"])
def test_identity_is_never_a_parameter(field):
    """A tool that would let the model say who asks is refused at startup."""
    parameters = msgspec.defstruct("Sly", [(field, str)], bases=(Parameters,), frozen=True)
    with pytest.raises(ValueError, match=field):
        tool(parameters=parameters)


class Loose(Parameters, frozen=True, forbid_unknown_fields=False):
    """Takes anything."""


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "Has Spaces"},
        {"name": "x" * 65},
        {"description": ""},
        {"parameters": dict},
        {"parameters": Loose},
        {"function": None},
        {"seconds": 0},
        {"seconds": float("inf")},
    ],
)
def test_a_malformed_tool_is_refused(changes):
    """It fails where it is written, not in somebody's run."""
    with pytest.raises((ValueError, TypeError)):
        tool(**changes)


def test_the_description_is_a_json_schema():
    """A model gets types, bounds and words, and that nothing else is taken."""
    assert tool().describe().parameters == {
        "title": "Fine",
        "description": "What to do.",
        "type": "object",
        "properties": {"words": {"type": "string", "maxLength": 10, "description": "the words"}},
        "required": ["words"],
        "additionalProperties": False,
    }


def test_the_registry_is_filled_once():
    """No two tools of one name, none after the start, none that is not there."""
    registry = ToolRegistry([tool()])
    with pytest.raises(ValueError, match="'fine' is registered already"):
        registry.register(tool())
    assert [found.name for found in registry.select(("fine",))] == ["fine"]
    with pytest.raises(ValueError, match="no such tool: 'other'"):
        registry.select(("fine", "other"))
    registry.freeze()
    with pytest.raises(RuntimeError):
        registry.register(tool(name="late"))
