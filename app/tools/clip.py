"""Bounding what tools return and models write, before it is stored, sent or shown to a model again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import attrs
import msgspec

MAX_DEPTH: Final = 32  # far above any useful result, far below what the JSON encoder refuses
_UNFIT: Final = re.compile("[\0\ud800-\udfff]")
_MAX_INTEGER: Final = 2**53  # beyond it a JSON number loses digits in JavaScript


@attrs.frozen
class Clipped:
    """A JSON value of bounded size.

    Attributes:
        value: a copy that shares nothing that can change with the original.
        truncated: whether something was left out.
    """

    value: Any
    truncated: bool


def clip(value: Any, limit: int) -> Clipped:
    """Return a JSON copy of `value` that holds at most about `limit` bytes.

    Works in time and memory proportional to `limit`, not to `value`: what does not fit is not looked at.
    Text counts as UTF-8, without JSON's escapes. Values that JSON does not know (attrs and msgspec objects,
    times, UUIDs, ...) become what msgspec makes of them; whole numbers beyond 2**53 become text.

    Raises:
        TypeError: a value has no JSON form, or a key is not text.
    """
    clipper = _Clipper(limit)
    return Clipped(clipper.clip(value, 0), clipper.truncated)


def clean_text(text: str) -> str:
    """Return `text` without what cannot be stored or sent: NUL and lone surrogates, each replaced by U+FFFD."""
    return _UNFIT.sub("\ufffd", text)


class _Clipper:
    """Counts down the bytes that are left over one whole value."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self.truncated = False

    def clip(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self._text(value)
        self._left -= 4  # a small number, a pair of brackets, a comma
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if abs(value) <= _MAX_INTEGER else self._integer(value)
        return self._structure(value, depth)

    def _structure(self, value: Any, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            self.truncated = True
            return None
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, list | tuple | set | frozenset):
            return self._items(value, depth)
        return self.clip(_plain(value), depth + 1)

    def _text(self, text: str) -> str:
        self._left -= 2
        room = max(self._left, 0)
        data = clean_text(text[:room]).encode()
        if len(data) > room or len(text) > room:
            self.truncated = True
            data = data[:room]
        self._left -= len(data)
        return data.decode(errors="ignore")

    def _integer(self, value: int) -> str:
        if value.bit_length() > 4 * max(self._left, 0):
            self.truncated = True
            return "a number too long to show"
        return self._text(f"{value:#x}" if value.bit_length() > 10_000 else str(value))

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        result = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of a result must be text, not {type(key).__name__}")
            if self._left <= 0:
                self.truncated = True
                break
            result[self._text(key)] = self.clip(item, depth + 1)
        return result

    def _items(self, value: Any, depth: int) -> list[Any]:
        result = []
        for item in value:
            if self._left <= 0:
                self.truncated = True
                break
            result.append(self.clip(item, depth + 1))
        return result


def _plain(value: Any) -> Any:
    """Return the form of one value that JSON does not know, its parts left as they are."""
    if attrs.has(type(value)):
        return {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    if isinstance(value, msgspec.Struct):
        return msgspec.structs.asdict(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("a result must be text or JSON values, not bytes")
    return msgspec.to_builtins(value)  # TypeError for what it does not know
