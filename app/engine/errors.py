"""What an engine refuses, and how a run can break in it."""

from __future__ import annotations

from app.errors import InvalidField
from nurseries.errors import Fault


class UnknownAgent(InvalidField):
    """No agent of that name is registered here."""

    code = "unknown_agent"

    def __init__(self, name: str) -> None:
        super().__init__("agent", f"there is no agent {name[:64]!r}")


class InvalidOrder(InvalidField):
    """A message that had to be an order in JSON is not one."""

    code = "invalid_order"


class TooManySteps(Fault):
    """The model went on asking for tools and never answered."""

    code = "too_many_steps"
