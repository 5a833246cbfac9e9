"""What an object holds, as far as sharing it could let one user's data reach another.

Not looked into, and why:

- Types, functions and variables of libraries: they are the same for all, and what a library keeps is its own
  affair. Of our own code, and that of agents, class attributes, default arguments, closures and the module
  variables that a function names are looked into: that is where caches are. A variable that a function assigns
  counts as well, whatever is in it.
- What a function finds by a name that is no part of its code (`getattr(module, name)`, `globals()[name]`,
  `sys.modules`), and what it assigns to a class (`Agent.last = text`): no object says so.
- Tasks and nurseries: the scheduler ties all tasks of a process into one tree. They are walked where they belong
  to a request, from their coroutines down; see `nurseries.inspect.roots`.
- Frames of methods of declared infrastructure, and library code below them: what these hold is the
  infrastructure's own, such as the event that tells all of a batch's writers that it is committed.
- Weak references, and finished frames in a traceback.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import sys
import types
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from nurseries.inspect.kinds import SHELL, STATE, Kinds, is_own_dict
from nurseries.inspect.mentions import Mentions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import CodeType

    from nurseries.inspect.kinds import Infrastructure

SUSPENDABLE: Final = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)


@attrs.define(eq=False)
class AssignedVariable:
    """Stands for a variable that functions give other values: whoever runs them reaches what the others put there.

    Attributes:
        cell: of a function around them; None of a module.
    """

    cell: types.CellType | None


class Reach:
    """Judges objects and opens them, given what is declared as shared. It keeps variables, and no object of any user."""

    def __init__(self, infrastructure: Infrastructure) -> None:
        self._kinds = Kinds(infrastructure)
        self._methods = frozenset(_methods_of(infrastructure))
        self._mentions: dict[CodeType, Mentions] = {}
        self._assigned: dict[tuple[int, str], AssignedVariable] = {}
        self.kind = self._kinds.of

    def inside(self, thing: object) -> Iterable[object]:
        """Return what `thing` holds: all that it refers to, but for what the head of this file leaves out."""
        match thing:
            case types.FunctionType():
                held: Iterable[object] = self._in_function(thing)
            case types.CoroutineType() | types.GeneratorType() | types.AsyncGeneratorType():
                held = self._in_frame(thing)
            case type():
                held = _in_class(thing)
            case staticmethod() | classmethod():
                held = (thing.__func__,)
            case functools.cached_property():
                held = (thing.func,)  # it has a lock besides, in Python 3.11
            case Context():
                held = tuple(thing.values())
            case trio.Nursery():
                held = ()  # its tasks are walked where they belong to a request
            case _:
                held = gc.get_referents(thing)
                if self.kind(thing) == SHELL:
                    held = _in_shell(thing, held)
        return held

    def _in_frame(self, frame: Any) -> Iterable[object]:
        if _code_of(frame) not in self._methods:
            return gc.get_referents(frame)
        # The infrastructure's own locals are none of any user's; it may have called a user's code, though.
        below = awaited(frame)
        while isinstance(below, SUSPENDABLE):
            if _code_of(below) not in self._methods and self._kinds.is_ours(_module_of(below)):
                return (below,)
            below = awaited(below)
        return ()

    def _in_function(self, function: types.FunctionType) -> Iterator[object]:
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is not None:
            yield wrapped
        if _is_generated(function) or not self._kinds.is_ours(function.__globals__.get("__name__")):
            # A library's decorator may have one of our functions inside.
            yield from filter(callable, map(content, function.__closure__ or ()))
            return
        yield from function.__closure__ or ()
        yield from function.__defaults__ or ()
        yield from (function.__kwdefaults__ or {}).values()
        yield from vars(function).values()
        yield from self.variables(function).values()
        yield from (variable for _, variable in self.assigned(function))

    def variables(self, function: types.FunctionType) -> dict[str, object]:
        """Return the module variables that a function names, those of modules that it names or imports included."""
        mentions = self._mentions_in(function.__code__)
        space = function.__globals__
        waiting = [(name, space[name]) for name in mentions.names & space.keys()]
        waiting += _imported(mentions, space.get("__package__"))
        found: dict[str, object] = {}
        opened: set[str] = set()
        while waiting:
            name, value = waiting.pop()
            found[name] = value
            if not isinstance(value, types.ModuleType) or value.__name__ in opened:
                continue
            if self._kinds.is_ours(value.__name__):
                opened.add(value.__name__)
                inner = vars(value)
                waiting += [(f"{name}.{each}", inner[each]) for each in mentions.names & inner.keys()]
        return found

    def assigned(self, function: types.FunctionType) -> Iterator[tuple[str, AssignedVariable]]:
        """Yield the variables, of its module or of a function around it, that a function gives other values.

        Those are left out that hold what can change: that is shared in any case.
        """
        mentions = self._mentions_in(function.__code__)
        space = function.__globals__
        for name in mentions.assigned:
            if self.kind(space.get(name)) != STATE:
                yield name, self._variable(id(space), name, None)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name in mentions.reassigned and self.kind(content(cell)) != STATE:
                yield name, self._variable(id(cell), name, cell)

    def _variable(self, place: int, name: str, cell: types.CellType | None) -> AssignedVariable:
        return self._assigned.setdefault((place, name), AssignedVariable(cell))

    def _mentions_in(self, code: CodeType) -> Mentions:
        mentions = self._mentions.get(code)
        if mentions is None:
            mentions = self._mentions[code] = Mentions.of(code)
        return mentions


def _imported(mentions: Mentions, package: str | None) -> Iterator[tuple[str, object]]:
    """Yield the modules that a function imports when it runs, as far as they are loaded."""
    for name in mentions.imports:
        with suppress(ImportError):  # more dots than there are packages: it would fail
            full = importlib.util.resolve_name(name, package)
            if full in sys.modules:
                yield full, sys.modules[full]


def content(cell: types.CellType) -> object:
    """Return what a closure's variable holds; the cell itself while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def awaited(frame: Any) -> object:
    """Return what a suspended coroutine or generator waits for."""
    if isinstance(frame, types.CoroutineType):
        return frame.cr_await
    return frame.ag_await if isinstance(frame, types.AsyncGeneratorType) else frame.gi_yieldfrom


def _methods_of(infrastructure: Infrastructure) -> Iterator[CodeType]:
    """Return the code of all methods of what is declared."""
    classes = {*infrastructure.types, *(type(each) for each in infrastructure.objects)}
    for cls in classes:
        for base in cls.__mro__:
            if base is object or base.__module__ == "builtins":
                continue
            for value in tuple(vars(base).values()):
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                function = getattr(function, "__wrapped__", function)
                if isinstance(function, types.FunctionType):
                    yield function.__code__


def _code_of(frame: Any) -> object:
    for name in ("cr_code", "gi_code", "ag_code"):
        code = getattr(frame, name, None)
        if code is not None:
            return code
    return None


def _module_of(frame: Any) -> object:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        real = getattr(frame, name, None)
        if real is not None:
            return real.f_globals.get("__name__")
    return None


def _is_generated(function: types.FunctionType) -> bool:
    """Say whether attrs wrote it: it does so in a copy of our module's variables, with some of its own."""
    return function.__code__.co_filename.startswith("<attrs generated")


def _in_class(cls: type) -> Iterator[object]:
    yield type(cls)
    yield from cls.__bases__
    for name, value in tuple(vars(cls).items()):
        if not (name.startswith("__") and name.endswith("__")) or isinstance(value, types.FunctionType):
            yield value


def _in_shell(thing: object, held: Sequence[object]) -> Iterator[object]:
    """Open an immutable object. The dict that it may have inside is taken to be nobody else's."""
    for each in held:
        if isinstance(thing, (types.MappingProxyType, functools.partial)) and isinstance(each, dict):
            yield from each
            yield from each.values()
        elif is_own_dict(thing, each):
            yield from vars(thing).values()
        else:
            yield each
