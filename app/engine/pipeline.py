"""The agent that works in stages: what one returns, the next one takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
import msgspec

from app.engine.agent import Agent
from app.engine.errors import AgentFailed, WrongType
from app.engine.request import Answer
from app.engine.stages import steps_of
from app.tools.clip import clip

if TYPE_CHECKING:
    from app.engine.request import AgentRequest
    from app.engine.stages import Stage, Step

_SHOWN_BYTES: Final = 4096
"""What is shown of a result that is no text."""


@attrs.frozen
class _State:
    """How far a pipeline has got."""

    done: int
    value: msgspec.Raw


class Pipeline(Agent):
    """Base of agents that work in stages.

    The first stage takes the user's message, the last one returns the answer. Each runs in a request inside this
    one, with the pipeline's tools; what fails is tried again, skipped, or ends the run, as its `Stage` declares.
    That the stages fit together is checked when the pipeline is registered, and each result when it is there. A
    resumable pipeline goes on behind the last stage that was done: a function is called again, and the calls that
    had ended return their results; an agent that is resumable goes on.

    Attributes:
        stages: in their order.
    """

    stages: ClassVar[tuple[Stage, ...]] = ()
    _steps: ClassVar[tuple[Step, ...]]

    @classmethod
    def prepare(cls) -> None:
        """See that the stages fit together."""
        try:
            cls._steps = steps_of(cls.stages, kept=cls.resumable)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{cls.__name__}: {error}") from error
        agents = [step.stage.work for step in cls._steps if isinstance(step.stage.work, str)]
        cls.agents = tuple(dict.fromkeys([*cls.agents, *agents]))

    async def run(self, request: AgentRequest) -> Answer:
        """Pass the message through all stages."""
        value: Any = request.content
        done = 0
        state = request.resumed(_State)
        if state is not None:
            done = state.done
            value = msgspec.json.decode(state.value, type=self._steps[done - 1].returns)
        for step in self._steps[done:]:
            value = await self._pass(request, step, value)
            done += 1
            if self.resumable:
                await request.checkpoint(_State(done, msgspec.Raw(msgspec.json.encode(value))))
        return Answer(value, request.delegated)

    async def _pass(self, request: AgentRequest, step: Step, value: Any) -> Any:
        """Return the result of one stage, or what stands in for it."""
        stage = step.stage

        async def work(call_id: str) -> Any:
            if isinstance(stage.work, str):
                answer = await request.delegate(stage.work, value, seconds=stage.seconds, call_id=call_id)
                return answer.output
            worker = _Worker(stage.name, self.tools, self.agents, step, value)
            # Not a declared agent, so there is no public way to it.
            await request._children.run(worker, request.content, seconds=stage.seconds, call_id=call_id)  # noqa: SLF001
            return worker.result

        try:
            return await stage.attempt(stage.name, work)
        except AgentFailed:
            if stage.on_failure == "end":
                raise
            return step.otherwise(value)


@attrs.define(eq=False)
class _Worker:
    """The agent of one stage, in one run."""

    name: str
    tools: tuple[str, ...]
    agents: tuple[str, ...]
    _step: Step
    _value: Any
    result: Any = None
    resumable: bool = False

    async def run(self, request: AgentRequest) -> str:
        """Do the stage's work.

        Returns:
            The result, as text for people.

        Raises:
            WrongType: the value, or the result, is not of the declared type.
        """
        work = self._step.stage.work
        assert not isinstance(work, str)
        value = self._convert("is given", self._value, self._step.takes)
        self.result = self._convert("returned", await work(request, value), self._step.returns)
        return self.result if isinstance(self.result, str) else _shown(self.result)

    def _convert(self, how: str, value: Any, declared: Any) -> Any:
        try:
            return msgspec.convert(value, declared)
        except msgspec.ValidationError as error:
            raise WrongType(f"the stage {self.name} {how} what it does not declare: {error}") from None


def _shown(result: object) -> str:
    try:
        return msgspec.json.encode(clip(result, _SHOWN_BYTES).value).decode()
    except TypeError:
        return type(result).__name__
