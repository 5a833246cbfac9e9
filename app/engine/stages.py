"""The stages of a pipeline: what each takes and returns, read from its annotations before the first run."""

from __future__ import annotations

import inspect
import re
from types import NoneType, SimpleNamespace, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import attrs
import msgspec

from app.engine.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from app.engine.request import AgentRequest

    Work = Callable[[AgentRequest, Any], Awaitable[Any]]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_UNCHANGED: Any = object()


def _encoded(value: object) -> bytes | None:
    """Keep a value in a form that nobody can change, for each run to make its own of it."""
    return None if value is _UNCHANGED else msgspec.json.encode(value)


@attrs.frozen
class Stage(Policy):
    """One stage of a pipeline.

    Attributes:
        work: `async def (request, value)`, whose annotations say what it takes and returns; or the name of an
            agent, which takes text and returns text.
        name: what its events call it; the function's or the agent's own name by default.
        otherwise: what is passed on in its place where it is skipped, JSON values, attrs or msgspec objects. Without
            it that is what it was given, and so it must return what it takes.
    """

    work: Work | str
    name: str = attrs.field(kw_only=True)
    otherwise: bytes | None = attrs.field(default=_UNCHANGED, converter=_encoded, kw_only=True)

    @name.default
    def _own_name(self) -> str:
        return self.work if isinstance(self.work, str) else getattr(self.work, "__name__", "")


@attrs.frozen
class Step:
    """A stage with its types.

    Attributes:
        takes: the type of its value.
        returns: the type of its result.
    """

    stage: Stage
    takes: Any
    returns: Any

    def otherwise(self, value: object) -> object:
        """Return what is passed on in place of the result."""
        if self.stage.otherwise is None:
            return value
        return msgspec.json.decode(self.stage.otherwise, type=self.returns)


def steps_of(stages: Iterable[Stage], *, kept: bool) -> tuple[Step, ...]:
    """Return the stages with their types, if they fit together, from the user's text to the text of the answer.

    Args:
        stages: in their order.
        kept: whether results have to be written down, for another server to go on with.

    Raises:
        TypeError: a stage is no such function, or two do not fit; the message names them.
        ValueError: a name cannot be used.
    """
    steps: list[Step] = []
    before, given = "the message", str
    for stage in stages:
        if not isinstance(stage, Stage):
            raise TypeError(f"stages are `Stage`s, not {stage!r}")
        if not _NAME.fullmatch(stage.name):
            raise ValueError(f"stage {stage.name!r}: lower case letters, digits, '-' and '_', at most 64")
        if stage.name in {step.stage.name for step in steps}:
            raise ValueError(f"stage {stage.name!r}: another stage has this name")
        step = Step(
            stage, *((str, str) if isinstance(stage.work, str) else _types_of(stage.name, stage.work))
        )
        if not accepts(step.takes, given):
            raise TypeError(f"stage {stage.name!r} takes {_told(step.takes)}, but {before} is {_told(given)}")
        _check(step, kept=kept)
        steps.append(step)
        before, given = f"what {stage.name!r} returns", step.returns
    if not steps:
        raise ValueError("there must be stages")
    if given is not str:
        raise TypeError(f"the answer must be str, but {before} is {_told(given)}")
    return tuple(steps)


def _check(step: Step, *, kept: bool) -> None:
    stage = step.stage
    for declared in (step.takes, step.returns):
        try:
            msgspec.convert(None, declared)
        except msgspec.ValidationError:
            pass  # None is no such value, but there are such values
        except TypeError as error:
            raise TypeError(f"stage {stage.name!r}: {error}") from None
    if kept:
        try:
            msgspec.json.schema(step.returns)
        except TypeError as error:
            raise TypeError(f"stage {stage.name!r} of a resumable pipeline: {error}") from None
    if stage.otherwise is not None:
        try:
            step.otherwise(None)
        except msgspec.ValidationError as error:
            raise TypeError(f"stage {stage.name!r}: otherwise: {error}") from None
    elif stage.on_failure == "skip" and not accepts(step.returns, step.takes):
        raise TypeError(
            f"stage {stage.name!r} may be skipped, but takes {_told(step.takes)} and returns"
            f" {_told(step.returns)}: say what is passed on with `otherwise`"
        )


def _types_of(name: str, work: Work) -> tuple[Any, Any]:
    """Return what a function takes and returns."""
    wanted = f"stage {name!r} must be `async def (request, value: ...) -> ...`"
    if not inspect.iscoroutinefunction(work):
        raise TypeError(wanted)
    parameters = list(inspect.signature(work).parameters.values())
    try:
        inspect.signature(work).bind("request", "value")
        takes, returns = parameters[1].annotation, inspect.signature(work).return_annotation
    except (TypeError, IndexError):
        raise TypeError(wanted) from None
    if inspect.Parameter.empty in {takes, returns}:
        raise TypeError(f"{wanted}: it does not say what it takes and returns")
    try:
        hints = get_type_hints(
            SimpleNamespace(__annotations__={"takes": takes, "returns": returns}),
            globalns=inspect.unwrap(work).__globals__,
            include_extras=True,
        )
    except NameError as error:
        raise TypeError(f"stage {name!r}: its annotations: {error}") from None
    return hints["takes"], hints["returns"]


def accepts(wanted: Any, given: Any) -> bool:
    """Say whether every value of type `given` can be one of type `wanted`, as far as types tell."""
    wanted, given = _bare(wanted), _bare(given)
    if wanted in {Any, object} or wanted == given or (wanted is float and given is int):
        return True
    if get_origin(given) in {Union, UnionType}:
        return all(accepts(wanted, each) for each in get_args(given))
    if get_origin(wanted) in {Union, UnionType}:
        return any(accepts(each, given) for each in get_args(wanted))
    outer, inner = get_origin(wanted) or wanted, get_origin(given) or given
    if not (isinstance(outer, type) and isinstance(inner, type) and issubclass(inner, outer)):
        return False
    arguments, others = get_args(wanted), get_args(given)
    return not arguments or (len(arguments) == len(others) and all(map(accepts, arguments, others)))


def _bare(declared: Any) -> Any:
    if get_origin(declared) is Annotated:
        return get_args(declared)[0]
    return NoneType if declared is None else declared


def _told(declared: Any) -> str:
    return declared.__name__ if isinstance(declared, type) and not get_args(declared) else str(declared)
