"""What a function's code mentions: the names it looks up, the modules it imports, the variables it assigns.

Of a function that runs now and then, its code is all that says which variables beyond its own it may touch.
"""

from __future__ import annotations

import dis
from types import CodeType
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

_GLOBALS: Final = ("STORE_GLOBAL", "DELETE_GLOBAL")
_FREE: Final = ("STORE_DEREF", "DELETE_DEREF")
_IMPORT: Final = "IMPORT_NAME"
_TOLD: Final = frozenset(dis.opmap[name] for name in (*_GLOBALS, *_FREE, _IMPORT))
"""To read instructions takes a hundred times as long as to see that there is none of these."""


@attrs.frozen
class Mentions:
    """What some code mentions, that of the functions within it included.

    Attributes:
        names: of global variables and of attributes.
        imports: modules, a relative one with its dots.
        assigned: global variables that it gives other values.
        reassigned: variables of a function around it that it gives other values.
    """

    names: frozenset[str]
    imports: frozenset[str]
    assigned: frozenset[str]
    reassigned: frozenset[str]

    @classmethod
    def of(cls, code: CodeType) -> Mentions:
        """Read some code."""
        inner = [cls.of(const) for const in code.co_consts if isinstance(const, CodeType)]
        told = frozenset(_told(code))
        return cls(
            names=frozenset(code.co_names).union(*(each.names for each in inner)),
            imports=_named(told, (_IMPORT,)).union(*(each.imports for each in inner)),
            assigned=_named(told, _GLOBALS).union(*(each.assigned for each in inner)),
            reassigned=_named(told, _FREE).union(*(each.reassigned for each in inner))
            & frozenset(code.co_freevars),
        )


def _named(told: frozenset[tuple[str, str]], operations: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for operation, name in told if operation in operations)


def _told(code: CodeType) -> Iterator[tuple[str, str]]:
    """Yield operations of interest, each with the name that it is about."""
    if _TOLD.isdisjoint(code.co_code[::2]):
        return
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for number, step in enumerate(steps):
        if step.opname == _IMPORT:
            level = steps[number - 2].argval  # what it imports from it lies between: constants, both
            yield _IMPORT, "." * level + step.argval
        elif step.opcode in _TOLD:
            yield step.opname, step.argval
