"""How one object holds another, in words: attributes, variables and types, and nothing that a user ever wrote."""

from __future__ import annotations

import types
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from nurseries.inspect.kinds import is_own_dict, own_dict
from nurseries.inspect.reach import Reach, content

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


Kind = Literal[
    "attribute",
    "class attribute",
    "closure",
    "context variable",
    "default argument",
    "item",
    "local variable",
    "module variable",
    "reference",
    "root",
]

_MAX_STEPS: Final = 24
_COROUTINES: Final = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)


@attrs.frozen
class Label:
    """One step of a path: how it is held, and by which name."""

    kind: Kind
    text: str


def type_name(thing: object) -> str:
    """Return the name of a type, with its module."""
    cls = type(thing)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def describe(way: Sequence[object], reach: Reach) -> Label:
    """Describe the way from a root, its first object, to its last one; the kind is that of the last step."""
    kind: Kind = "root"
    steps = [_short(way[0])]
    holder = way[0]
    for held in way[1:]:
        if isinstance(held, types.CellType) or is_own_dict(holder, held):
            continue  # the variables of a function, or the attributes of an object: told as such
        step = _label(holder, held, reach)
        kind = step.kind
        steps.append(f"{step.text}: {_short(held)}")
        holder = held
    if len(steps) > _MAX_STEPS:
        steps[_MAX_STEPS // 2 : -_MAX_STEPS // 2] = ["..."]
    return Label(kind, " > ".join(steps))


def _label(holder: object, held: object, reach: Reach) -> Label:
    """Say how `holder` holds `held`, if it still does."""
    for found, value in _names(holder, reach):
        if value is held:
            return found
    return Label("reference", "type" if held is type(holder) else "refers to")


def _short(thing: object) -> str:
    if isinstance(thing, (types.FunctionType, *_COROUTINES)):
        return f"{thing.__qualname__}()"
    return thing.__qualname__ if isinstance(thing, type) else type(thing).__qualname__


def _names(holder: Any, reach: Reach) -> Iterator[tuple[Label, object]]:
    if isinstance(holder, types.FunctionType):
        yield from _in_function(holder, reach)
    elif isinstance(holder, type):
        for name, value in tuple(vars(holder).items()):
            yield Label("class attribute", f"class attribute {name}"), value
    elif isinstance(holder, (*_COROUTINES, types.MethodType, Context)):
        yield from _in_call(holder)
    else:
        yield from _items(holder)
        yield from _attributes(holder)


def _items(holder: object) -> Iterator[tuple[Label, object]]:
    if isinstance(holder, (dict, types.MappingProxyType)):
        for key, value in tuple(holder.items()):
            yield Label("item", "value"), value
            yield Label("item", "key"), key
    elif isinstance(holder, (list, tuple, set, frozenset)):
        for item in tuple(holder):
            yield Label("item", "item"), item


def _in_call(holder: Any) -> Iterator[tuple[Label, object]]:
    if isinstance(holder, types.MethodType):
        yield Label("attribute", "method of"), holder.__self__
    elif isinstance(holder, Context):
        for variable, value in holder.items():
            yield Label("context variable", f"context variable {variable.name}"), value
    else:
        yield from _locals(holder)


def _locals(coroutine: Any) -> Iterator[tuple[Label, object]]:
    frame = next(
        (each for name in ("cr_frame", "gi_frame", "ag_frame") if (each := getattr(coroutine, name, None))),
        None,
    )
    if frame is not None:
        for name, value in tuple(frame.f_locals.items()):
            yield Label("local variable", f"local {name}"), value


def _in_function(function: types.FunctionType, reach: Reach) -> Iterator[tuple[Label, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield Label("closure", f"closure variable {name}"), content(cell)
    code = function.__code__
    defaults = function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount][-len(defaults) :] if defaults else ()
    for name, value in (*zip(names, defaults, strict=True), *(function.__kwdefaults__ or {}).items()):
        yield Label("default argument", f"default of {name}"), value
    for name, value in vars(function).items():
        yield Label("attribute", f".{name}"), value
    for name, value in reach.variables(function).items():
        yield Label("module variable", f"module variable {name}"), value
    for name, variable in reach.assigned(function):
        kind: Kind = "module variable" if variable.cell is None else "closure"
        yield Label(kind, f"it assigns {name}"), variable


def _attributes(holder: object) -> Iterator[tuple[Label, object]]:
    for name, value in tuple((own_dict(holder) or {}).items()):
        yield Label("attribute", f".{name}"), value
    for cls in type(holder).__mro__:
        for name, member in tuple(vars(cls).items()):
            if isinstance(member, types.MemberDescriptorType):
                try:
                    yield Label("attribute", f".{name}"), member.__get__(holder)
                except AttributeError:
                    continue  # nothing is in this slot
