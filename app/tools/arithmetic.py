"""Exact arithmetic on what a stranger wrote: a small parser over fractions, every step bounded.

    sum      = product (("+" | "-") product)*
    product  = sign (("*" | "/" | "//" | "%") sign)*
    sign     = ("+" | "-") sign | power
    power    = atom ("**" sign)?                      -2 ** 2 is -4, 2 ** 3 ** 2 is 512, as in Python
    atom     = number | "(" sum ")" | function "(" sum ("," sum)* ")"

`^` is another way to write `**`; `x`, `\u00d7` and `\u00f7` between numbers are taken as people mean them.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import attrs

from nurseries.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_LENGTH: Final = 1000
MAX_DEPTH: Final = 50
MAX_DIGITS: Final = 500
"""Digits of any numerator or denominator on the way. With `MAX_LENGTH` it bounds an expression to milliseconds."""

_MAX_BITS: Final = int(MAX_DIGITS * math.log2(10))
_TOKEN: Final = re.compile(
    r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z]+)|(\*\*|//|\S))", re.ASCII
)
_ALIASES: Final = MappingProxyType(
    {"^": "**", "\u00d7": "*", "x": "*", "X": "*", "\u00f7": "/", "\u2212": "-", "\u00b7": "*"}
)


class ArithmeticRefused(CallerError):
    """The expression is not arithmetic, or has no exact value within bounds."""

    code = "invalid_arguments"


@attrs.frozen
class Token:
    """A piece of the expression; `position` counts characters from 1."""

    kind: str
    text: str
    position: int


def evaluate(expression: str) -> Fraction:
    """Return the exact value of `expression`.

    Raises:
        ArithmeticRefused: says what is wrong, and where.
    """
    if len(expression) > MAX_LENGTH:
        raise ArithmeticRefused(f"the expression is longer than {MAX_LENGTH} characters")
    return _Parser(_tokens(expression)).parse()


def _tokens(expression: str) -> list[Token]:
    """Return the tokens, ending with one of kind `end`."""
    tokens = []
    for match in _TOKEN.finditer(expression):
        number, word, symbol = match.groups()
        text = number or word or symbol
        kind = "number" if number else "symbol"
        if word and word not in _ALIASES:
            kind = "word"
        tokens.append(Token(kind, _ALIASES.get(text, text), match.start(match.lastindex or 0) + 1))
    return [*tokens, Token("end", "the end", len(expression) + 1)]


class _Parser:
    """Recursive descent; each method reads one rule of the grammar and returns its value."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def parse(self) -> Fraction:
        value = self._sum()
        if self._peek().kind != "end":
            raise self._unexpected()
        return value

    def _sum(self) -> Fraction:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ArithmeticRefused(f"the expression is nested deeper than {MAX_DEPTH}")
        value = self._product()
        while operator := self._take("+", "-"):
            right = self._product()
            value = _bounded(value + right if operator == "+" else value - right)
        self._depth -= 1
        return value

    def _product(self) -> Fraction:
        value = self._sign()
        while operator := self._take("*", "/", "//", "%"):
            right = self._sign()
            value = _bounded(_divide(operator, value, right) if operator != "*" else value * right)
        return value

    def _sign(self) -> Fraction:
        sign = 1
        while operator := self._take("+", "-"):
            sign = -sign if operator == "-" else sign
        return sign * self._power()

    def _power(self) -> Fraction:
        base = self._atom()
        if not self._take("**"):
            return base
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ArithmeticRefused(f"the expression is nested deeper than {MAX_DEPTH}")
        value = _raise_to(base, self._sign())
        self._depth -= 1
        return value

    def _atom(self) -> Fraction:
        token = self._peek()
        if token.kind == "number":
            self._next += 1
            return _number(token.text)
        if token.kind == "word":
            self._next += 1
            return self._call(token)
        if self._take("("):
            value = self._sum()
            self._expect(")")
            return value
        raise self._unexpected()

    def _call(self, name: Token) -> Fraction:
        function = _FUNCTIONS.get(name.text.lower())
        if function is None:
            known = ", ".join(_FUNCTIONS)
            raise ArithmeticRefused(f"{name.text!r} at character {name.position} is not one of: {known}")
        self._expect("(")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        self._expect(")")
        return _bounded(Fraction(function(name.text.lower(), arguments)))

    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _take(self, *symbols: str) -> str:
        """Step over the next token and return its text if it is one of `symbols`, else return ''."""
        token = self._peek()
        if token.kind != "symbol" or token.text not in symbols:
            return ""
        self._next += 1
        return token.text

    def _expect(self, symbol: str) -> None:
        if not self._take(symbol):
            raise self._unexpected(f", {symbol!r} was expected")

    def _unexpected(self, hint: str = "") -> ArithmeticRefused:
        token = self._peek()
        what = "the expression ends" if token.kind == "end" else f"{token.text!r} is not expected"
        return ArithmeticRefused(f"{what} at character {token.position}{hint}")


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise _too_large()
    return value


def _too_large() -> ArithmeticRefused:
    return ArithmeticRefused(f"the value has more than {MAX_DIGITS} digits")


def _number(text: str) -> Fraction:
    _, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_DIGITS:
        raise _too_large()
    return _bounded(Fraction(text))


def _divide(operator: str, left: Fraction, right: Fraction) -> Fraction:
    if right == 0:
        raise ArithmeticRefused("division by zero")
    if operator == "/":
        return left / right
    return Fraction(left // right) if operator == "//" else left % right


def _raise_to(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ArithmeticRefused("an exponent must be a whole number: a root is seldom exact")
    if base == 0 and exponent < 0:
        raise ArithmeticRefused("division by zero")
    if abs(base) not in (0, 1):
        # Decided by logarithms before anything is computed.
        growth = max(math.log2(abs(base.numerator)), math.log2(base.denominator))
        if abs(exponent) > _MAX_BITS or abs(int(exponent)) * growth > _MAX_BITS:
            raise _too_large()
    return Fraction(base ** int(exponent))


def _one(name: str, values: list[Fraction]) -> Fraction:
    if len(values) != 1:
        raise ArithmeticRefused(f"{name} takes one value")
    return values[0]


def _round(name: str, values: list[Fraction]) -> Fraction:
    """Round half to even, to whole numbers or to so many decimal places."""
    if len(values) == 1:
        return Fraction(round(values[0]))
    if len(values) != 2 or values[1].denominator != 1 or abs(values[1]) > MAX_DIGITS:
        raise ArithmeticRefused(f"{name} takes a value and a whole number of decimal places")
    return round(values[0], int(values[1]))


_FUNCTIONS: Final[Mapping[str, Callable[[str, list[Fraction]], Fraction | int]]] = MappingProxyType(
    {
        "abs": lambda name, values: abs(_one(name, values)),
        "ceil": lambda name, values: math.ceil(_one(name, values)),
        "floor": lambda name, values: math.floor(_one(name, values)),
        "max": lambda _, values: max(values),
        "min": lambda _, values: min(values),
        "round": _round,
    }
)
