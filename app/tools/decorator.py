"""Tools from plain Python functions: the signature says what a model may write, the docstring what for."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_type_hints, overload

import msgspec

from app.tools.schema import CallContext, Parameters, Tool, ToolContext

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Function = TypeVar("Function", bound="Callable[..., Any]")

_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *, name: str | None = None, description: str | None = None, seconds: float | None = None, **options: Any
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    seconds: float | None = None,
    **options: Any,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a `Tool` of a typed function; use it as `@tool` or `@tool(seconds=5)`.

    Each parameter becomes an argument that a model may write, checked and converted before the function is
    called; bounds are given with `Annotated[int, msgspec.Meta(ge=1, le=10, description="...")]`. A parameter
    annotated with `ToolContext` (asynchronous functions) or `CallContext` (plain ones) is given who asks and is
    no argument. A plain function runs in a worker thread; one that ignores its cancellation holds the thread's
    place until it returns.

    Args:
        function: the function, where the decorator is used without parentheses.
        name: how a model calls it, if not by the function's name.
        description: when to use it, if not the first paragraph of the docstring.
        seconds: its time limit, if not the server's.
        **options: further attributes of `Tool`.

    Raises:
        TypeError: the function cannot be a tool; the message names the parameter.
        ValueError: the name or an option cannot be used, or there is no description.
    """

    def decorate(function: Callable[..., Any]) -> Tool:
        return _make(function, name=name, description=description, seconds=seconds, **options)

    return decorate if function is None else decorate(function)


def _make(function: Callable[..., Any], *, name: str | None, description: str | None, **options: Any) -> Tool:
    own = function.__name__
    is_async = inspect.iscoroutinefunction(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"tool {own}: a tool returns its result; it does not yield")
    described = description or _first_paragraph(function)
    if not described:
        raise ValueError(
            f"tool {own}: needs a docstring or a description, which tells the model what it is for"
        )
    hints = get_type_hints(function, include_extras=True)
    wanted: type = ToolContext if is_async else CallContext
    context = _context_parameter(own, hints, wanted)
    parameters = _parameters(function, {key: hint for key, hint in hints.items() if key != context})
    return Tool(
        name or own,
        described,
        parameters,
        _adapter(function, parameters, context, is_async=is_async),
        **options,
    )


def _first_paragraph(function: Callable[..., Any]) -> str:
    paragraph = re.split(r"\n\s*\n", inspect.getdoc(function) or "", maxsplit=1)[0]
    return " ".join(paragraph.split())


def _context_parameter(own: str, hints: Mapping[str, Any], wanted: type) -> str | None:
    """Return the parameter that is given who asks, if there is one."""
    found = [key for key, hint in hints.items() if key != "return" and hint in {ToolContext, CallContext}]
    if len(found) > 1:
        raise TypeError(f"tool {own}: {' and '.join(found)}: one parameter for the context is enough")
    if found and hints[found[0]] is not wanted:
        kind = (
            "an asynchronous function" if wanted is ToolContext else "a plain function runs in a thread and"
        )
        raise TypeError(f"tool {own}: {found[0]}: {kind} is given a {wanted.__name__}")
    return found[0] if found else None


def _parameters(function: Callable[..., Any], hints: Mapping[str, Any]) -> type[Parameters]:
    """Return the type of the arguments."""
    own = function.__name__
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in hints:
            if parameter.annotation is parameter.empty:
                raise TypeError(f"tool {own}: {parameter.name}: needs a type")
            continue  # the context
        if parameter.kind not in _NAMED:
            raise TypeError(f"tool {own}: {parameter.name}: arguments have names; no *, ** or / here")
        field = (parameter.name, hints[parameter.name])
        if parameter.default is parameter.empty:
            fields.append(field)
        elif isinstance(parameter.default, (list, dict, set, bytearray)) and parameter.default:
            raise TypeError(
                f"tool {own}: {parameter.name}: a default that can change would be shared by all users"
            )
        else:
            fields.append((*field, parameter.default))
    try:
        made: Any = msgspec.defstruct(
            f"{own}_parameters",
            fields,
            bases=(Parameters,),
            module=function.__module__,
            frozen=True,
            kw_only=True,
            forbid_unknown_fields=True,
        )
        msgspec.json.schema(made)
    except (TypeError, ValueError) as error:
        raise TypeError(f"tool {own}: {error}") from None
    declared: type[Parameters] = made
    return declared


def _adapter(
    function: Callable[..., Any], parameters: type[Parameters], context: str | None, *, is_async: bool
) -> Callable[[Any, Any], Any]:
    """Return the function as a `Tool` calls it: with the context and the checked arguments."""
    names = parameters.__struct_fields__

    def arguments(given: Any, values: Parameters) -> dict[str, Any]:
        named = {name: getattr(values, name) for name in names}
        return named if context is None else {**named, context: given}

    if is_async:

        async def call_async(given: Any, values: Parameters) -> Any:
            return await function(**arguments(given, values))

        call_async.__wrapped__ = function  # type: ignore[attr-defined]  # where mistakes are reported from
        return call_async

    def call(given: Any, values: Parameters) -> Any:
        return function(**arguments(given, values))

    call.__wrapped__ = function  # type: ignore[attr-defined]  # as above
    return call
