"""What can change, what cannot, and what is declared as shared.

Every object is one of three things. *Nothing*: immutable and empty of other objects, or declared as shared. A
*shell*: immutable itself, but what it holds may not be. *State*: it can change, so two users must not both reach it.
"""

from __future__ import annotations

import functools
import gc
import re
import struct
import sys
import types
import typing
import weakref
from contextvars import Context, ContextVar, Token
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum, EnumType
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final
from uuid import UUID

import attrs
import trio

from nurseries.frozen import FrozenMapping

if TYPE_CHECKING:
    from collections.abc import Iterable

NOTHING: Final = 0
SHELL: Final = 1
STATE: Final = 2
_CODE: Final = 3
"""Classes: shells of our own code, nothing of libraries."""
_CACHE: Final = 4
"""Of `functools.cache`: state of our own code, nothing of libraries."""

_VALUES: Final = (str, bytes, int, float, complex)
_ATOMS: Final = (
    *_VALUES, types.NoneType, types.EllipsisType, types.NotImplementedType, range,
    Enum, EnumType, date, time, timedelta, tzinfo, Decimal, Fraction, UUID, PurePath, IPv4Address, IPv6Address,
    re.Pattern, types.CodeType, types.FrameType, types.TracebackType, types.ModuleType,
    Token, weakref.ReferenceType, weakref.ProxyType, weakref.CallableProxyType,
    types.GenericAlias, types.UnionType, typing.TypeVar, typing.ParamSpec,
    types.MemberDescriptorType, types.GetSetDescriptorType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.ClassMethodDescriptorType,
    trio.lowlevel.Task, trio.lowlevel.TrioToken, trio.abc.Clock,
)  # fmt: skip

_ATOMS_BY_NAME: Final = frozenset(
    {
        "_abc._abc_data",  # the registry of an abstract class
        "trio._threads._ActiveThreadCount",  # a number, and the news that it is zero
        # These keep nothing between two calls:
        "msgspec.json.Decoder",
        "msgspec.json.Encoder",
        "msgspec.msgpack.Decoder",
        "msgspec.msgpack.Encoder",
    }
)
# Where Trio keeps what it schedules with: one tree for the whole process. What people may use has other names.
_ATOMIC_MODULES: Final = ("trio._core.", "typing.")
_CYTHON_FUNCTION: Final = "cython_function_or_method"

_SHELLS: Final = (
    tuple, frozenset, slice, FrozenMapping, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.MethodWrapperType, types.CellType, types.MappingProxyType, functools.partial,
    functools.cached_property, property, staticmethod, classmethod, Context, ContextVar,
)  # fmt: skip

_HEAP_TYPE: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_POINTER_BYTES: Final = struct.calcsize("P")
_CONTAINERS: Final = (dict, list, set)
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


@attrs.frozen(eq=False)
class Infrastructure:
    """What users may share.

    Attributes:
        types: with their subclasses.
        objects: by identity.
        code: packages whose classes and functions are looked into although they are installed as libraries are.
    """

    types: tuple[type, ...] = ()
    objects: tuple[object, ...] = ()
    code: frozenset[str] = frozenset()

    def and_also(
        self, *, types: Iterable[type] = (), objects: Iterable[object] = (), code: Iterable[str] = ()
    ) -> Infrastructure:
        """Return a longer list."""
        return Infrastructure((*self.types, *types), (*self.objects, *objects), self.code | frozenset(code))


class Kinds:
    """Judges objects, given what is declared as shared. It keeps types, and no object of any user."""

    def __init__(self, infrastructure: Infrastructure) -> None:
        self._infrastructure = infrastructure
        self._declared = frozenset(map(id, infrastructure.objects))
        self._kinds: dict[type, int] = {}
        self._ours: dict[object, bool] = {}

    def of(self, thing: object) -> int:
        """Return `NOTHING`, `SHELL` or `STATE`."""
        kind = self._kinds.get(type(thing))
        if kind is None:
            kind = self._kinds[type(thing)] = self._of_instances(type(thing))
        if kind == NOTHING or id(thing) in self._declared:
            return NOTHING
        if kind == _CODE:
            return SHELL if self.is_ours(getattr(thing, "__module__", None)) else NOTHING
        if kind == _CACHE:
            return STATE if self.is_ours(getattr(thing, "__module__", None)) else NOTHING
        return kind

    def _of_instances(self, cls: type) -> int:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if issubclass(cls, self._infrastructure.types) or cls is object:
            return NOTHING
        if issubclass(cls, _ATOMS):
            return SHELL if _is_extended_value(cls) else NOTHING
        if (
            _is_stand_in(cls)
            or name in _ATOMS_BY_NAME
            or name.startswith(_ATOMIC_MODULES)
            or cls.__name__ == _CYTHON_FUNCTION
        ):
            return NOTHING
        if issubclass(cls, type):
            return _CODE
        if name == "functools._lru_cache_wrapper":
            return _CACHE
        return SHELL if issubclass(cls, _SHELLS) or _is_frozen(cls) else STATE

    def is_ours(self, module: object) -> bool:
        """Say whether code of this module is looked into: it belongs to no library, or is declared to be ours."""
        ours = self._ours.get(module)
        if ours is None:
            declared = isinstance(module, str) and module.partition(".")[0] in self._infrastructure.code
            ours = self._ours[module] = declared or (isinstance(module, str) and not is_library(module))
        return ours


def own_dict(thing: object) -> dict[str, object] | None:
    """Return the dict in which an object has its attributes, without asking the object."""
    try:
        found = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def is_own_dict(thing: object, held: object) -> bool:
    """Say whether a dict is where an object has its attributes."""
    return type(held) is dict and held is own_dict(thing)


def is_blank(thing: object) -> bool:
    """Say whether an object is a mere marker: an instance that holds nothing, not even a number."""
    cls = type(thing)
    if not cls.__flags__ & _HEAP_TYPE or issubclass(cls, _CONTAINERS) or not gc.is_tracked(thing):
        return False
    if cls.__basicsize__ != _size_of_plain(cls):
        return False  # it has something that only its C code sees, as locks and arrays have
    held = gc.get_referents(thing)
    return all(isinstance(each, type) or (is_own_dict(thing, each) and not each) for each in held)


def _is_extended_value(cls: type) -> bool:
    """Say whether instances are texts or numbers with attributes of their own."""
    return issubclass(cls, _VALUES) and not issubclass(cls, Enum) and cls.__dictoffset__ != 0


def _size_of_plain(cls: type) -> int:
    """Return the bytes of an instance that has nothing but attributes and slots."""
    slots = sum(
        isinstance(each, types.MemberDescriptorType) for base in cls.__mro__ for each in vars(base).values()
    )
    words = slots + (cls.__dictoffset__ > 0) + (cls.__weakrefoffset__ > 0)
    return object.__basicsize__ + words * _POINTER_BYTES


def _is_stand_in(cls: type) -> bool:
    """Say whether instances answer for another object, as proxies and mocks do: a question may have any effect."""
    return any("__class__" in vars(base) for base in cls.__mro__ if base is not object)


def _is_frozen(cls: type) -> bool:
    """Say whether instances of a class cannot be changed, as attrs, dataclasses and msgspec say it."""
    setter = cls.__setattr__
    if getattr(setter, "__module__", None) == "attr._make" and setter.__name__ == "_frozen_setattrs":
        return True
    parameters = getattr(cls, "__dataclass_params__", None)
    config = getattr(cls, "__struct_config__", None)
    return bool(getattr(parameters, "frozen", False) or getattr(config, "frozen", False))


def is_library(module: str) -> bool:
    """Say whether a module is installed rather than somebody's own."""
    if module == "__main__":
        return False
    if module.partition(".")[0] in sys.stdlib_module_names:
        return True
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if found is None or (file is None and hasattr(found, "__path__")):
        return False  # made on the spot, or a namespace
    return file is None or bool(_INSTALLED & set(Path(file).parts))
