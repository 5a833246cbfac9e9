"""Request headers as they came: several of a name, any bytes, no surprises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping


class Headers(Mapping[str, str]):
    """Headers of one request; names are compared without case, values are ISO-8859-1 text.

    A name given several times reads as its values joined by `", "` (RFC 9110, 5.3). So two `Authorization`
    headers are one that matches nothing, and never the first or the last of them.
    """

    __slots__ = ("_values",)

    def __init__(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, str] = {}
        for raw_name, raw_value in items:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            known = self._values.get(name)
            self._values[name] = value if known is None else f"{known}, {value}"

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
