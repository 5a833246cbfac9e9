"""What an engine refuses, and how a run can break in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import InvalidField
from nurseries.errors import CallerError, Fault

if TYPE_CHECKING:
    from nurseries.request import Failure


class UnknownAgent(InvalidField):
    """No agent of that name is registered here."""

    code = "unknown_agent"

    def __init__(self, name: str) -> None:
        super().__init__("agent", f"there is no agent {name[:64]!r}; GET /v1/agents has those that there are")


class InvalidOrder(InvalidField):
    """A message that had to be an order in JSON is not one."""

    code = "invalid_order"


class InvalidAnswer(Fault):
    """An agent returned what is no answer."""

    code = "invalid_answer"


class AnswerTooLong(Fault):
    """An agent said more than one run may say."""

    code = "answer_too_long"


class UndeclaredAgent(Fault):
    """An agent asked for another one that it does not name in its `agents`."""

    code = "undeclared_agent"


class TooManyAgents(CallerError):
    """A run had as many sub-agents as it may have, and asked for one more."""

    code = "too_many_agents"


class AgentTimeout(Fault):
    """A sub-agent did not answer within the time that it was given."""

    code = "agent_timeout"


class AgentFailed(Fault):
    """A sub-agent failed, and whoever asked for it made nothing else of it.

    Attributes:
        agent: its name.
        failure: how it failed, as far as its user may know.
    """

    code = "agent_failed"

    def __init__(self, agent: str, failure: Failure) -> None:
        super().__init__(f"the agent {agent} failed: {failure.message} ({failure.code})")
        self.agent = agent
        self.failure = failure


class MemberFailed(CallerError):
    """A sub-agent failed, and its supervisor goes on without; the message is for the supervisor's model."""

    code = "member_failed"


class WrongType(Fault):
    """A stage of a pipeline returned something else than it declares."""

    code = "wrong_type"


class StateTooLarge(Fault):
    """What a run would have to keep to be resumed is larger than a state may be."""

    code = "state_too_large"


class StateUnreadable(Fault):
    """What a run had kept is not what its agent keeps now."""

    code = "state_unreadable"


class TooManyTokens(Fault):
    """The model has used as many tokens as a run may, and had not come to an answer."""

    code = "too_many_tokens"


class TooManySteps(Fault):
    """The model went on asking for tools and never answered."""

    code = "too_many_steps"
