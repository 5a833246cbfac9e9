"""What an agent is, and the two ways to declare one: a class, or a function with a decorator."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, Final, overload

from app.engine.loop import converse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.engine.request import AgentRequest, Answer

    Run = Callable[[AgentRequest], Awaitable[Answer | str | None]]


class Agent:
    """Base of all agents. One instance is made for one request, so what it keeps in `self` is that request's.

    A subclass defines `run`, or says with `system` what a model shall do.

    Attributes:
        name: what clients ask for.
        description: one sentence for people.
        system: what the model is here for, where `run` is left as it is.
        tools: names of the tools that it may call.
        agents: names of the agents that it may delegate to.
        resumable: whether a run whose server was lost goes on in the next one. `converse`, and so an agent that
            is a `system` alone, goes on from its last step; another `run` is called again, and finds what it
            kept with `request.resumed`.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    system: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ()
    agents: ClassVar[tuple[str, ...]] = ()
    resumable: ClassVar[bool] = False

    @classmethod
    def prepare(cls) -> None:
        """Make ready what all instances use; called once, when the agent is registered.

        Raises:
            TypeError, ValueError: it is declared wrongly.
        """

    async def run(self, request: AgentRequest) -> Answer | str | None:
        """Answer `request.content`, saying the answer as it comes with `request.say`.

        Returns:
            The answer. Text is an answer without usage; None stands for what was said.
        """
        return await converse(request, self.system)


@overload
def agent(declared: Run | type, /) -> type[Agent]: ...
@overload
def agent(**attributes: Any) -> Callable[[Run | type], type[Agent]]: ...
def agent(
    declared: Run | type | None = None, /, **attributes: Any
) -> type[Agent] | Callable[[Run | type], type[Agent]]:
    """Declare `async def answer(request)`, or a class with `async def run(self, request)`, as an agent.

    Use it as `@agent` or as `@agent(name="parrot", tools=("clock",))`. Without them the name is that of the
    function or the class, and the description is the first line of its docstring. Whether it can be an agent
    is looked at when its module is registered, so that the mistake has a place.

    Args:
        declared: the function or the class, where the decorator is used without parentheses.
        **attributes: those of `Agent`.

    Raises:
        TypeError: an agent has no such attribute.
    """
    if unknown := attributes.keys() - _ATTRIBUTES:
        raise TypeError(
            f"an agent has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(_ATTRIBUTES))}"
        )

    def declare(declared: Run | type) -> type[Agent]:
        own = getattr(declared, "__name__", repr(declared))
        fields: dict[str, Any] = {
            "__module__": getattr(declared, "__module__", __name__),
            "__doc__": declared.__doc__,
            "name": getattr(declared, "name", own),
            "description": getattr(declared, "description", _first_line(declared)),
            **attributes,
        }
        if not isinstance(declared, type):
            return type(own, (Agent,), fields | {"run": staticmethod(declared)})
        return type(own, (declared,) if issubclass(declared, Agent) else (declared, Agent), fields)

    return declare if declared is None else declare(declared)


_ATTRIBUTES: Final = frozenset(Agent.__annotations__)


def _first_line(declared: object) -> str:
    return (inspect.getdoc(declared) or "").partition("\n")[0]
