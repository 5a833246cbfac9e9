"""Making values immutable all the way down, so that sharing one shares nothing that can change."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from nurseries.errors import InvalidContext

MAX_DEPTH: Final = 16
MAX_NODES: Final = 10_000

_ATOMS: Final = (
    str, bytes, int, float, complex, bool, type(None), UUID, Decimal, datetime, date, time, timedelta, Enum,
)  # fmt: skip


class FrozenMapping(Mapping[str, Any]):
    """A read-only mapping that owns its copy of the items, hashable and picklable as far as they are."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any]) -> None:
        # A proxy of a fresh dict: nobody else has the dict, and the proxy cannot write to it.
        object.__setattr__(self, "_items", MappingProxyType(dict(items)))

    _items: MappingProxyType[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Any:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name}: a FrozenMapping cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: a FrozenMapping cannot be changed")

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenMapping({dict(self._items)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenMapping, (dict(self._items),)


EMPTY: Final = FrozenMapping({})


def deep_freeze(value: Any, field: str) -> Any:
    """Return an immutable copy of `value`: mappings become `FrozenMapping`, lists tuples, sets frozensets.

    Raises:
        InvalidContext: a value has a type that cannot be frozen, a mapping has a key that is not a string,
            or the structure is deeper than `MAX_DEPTH` or larger than `MAX_NODES`. Names the path.
    """
    return _Freezer().freeze(value, field, 0)


class _Freezer:
    """Counts nodes over one structure; a reference to itself therefore ends as 'too deep'."""

    def __init__(self) -> None:
        self._nodes = 0

    def freeze(self, value: Any, path: str, depth: int) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidContext(path, f"more than {MAX_NODES} values")
        if isinstance(value, _ATOMS):
            return value
        if depth >= MAX_DEPTH:
            raise InvalidContext(path, f"nested deeper than {MAX_DEPTH}")
        if isinstance(value, Mapping):
            return FrozenMapping(
                {self._key(k, path): self.freeze(v, f"{path}.{k}", depth + 1) for k, v in value.items()}
            )
        if isinstance(value, list | tuple):
            return tuple(self.freeze(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value))
        if isinstance(value, set | frozenset):
            return frozenset(self.freeze(item, f"{path}{{}}", depth + 1) for item in value)
        raise InvalidContext(path, f"a {type(value).__name__} cannot be made immutable")

    @staticmethod
    def _key(key: object, path: str) -> str:
        if type(key) is not str:
            raise InvalidContext(path, f"key {key!r} is not a string")
        return key
