"""The tool that calculates."""

from __future__ import annotations

from decimal import Context, Decimal
from typing import TYPE_CHECKING, Annotated, Final

import trio
from msgspec import Meta

from app.tools.arithmetic import MAX_LENGTH, evaluate
from app.tools.schema import Parameters, Tool

if TYPE_CHECKING:
    from fractions import Fraction

    from app.tools.schema import ToolContext

_LONGEST_DECIMAL: Final = 60
"""Decimal places that are still easier to read than a fraction."""

_DIGITS: Final = 20


class CalculatorParameters(Parameters, frozen=True):
    """The expression."""

    expression: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=MAX_LENGTH,
            description="For example (1/3 + 0.1) * 2**10. Operators + - * / // % **; abs, ceil, floor, max, min, round.",
        ),
    ]


async def calculator(_context: ToolContext, parameters: CalculatorParameters) -> str:
    """Return the exact value as text.

    Raises:
        ArithmeticRefused: the expression is not arithmetic, divides by zero or is too large.
    """
    await trio.lowlevel.checkpoint()
    return exact(evaluate(parameters.expression))


def exact(value: Fraction) -> str:
    """Write a value exactly: `42`, `0.3`, or `1/3 (about 0.33333333333333333333)`."""
    if value.denominator == 1:
        return str(value.numerator)
    places = _decimal_places(value.denominator)
    if places <= _LONGEST_DECIMAL:
        digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
        return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    about = Context(prec=_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator))
    return f"{value} (about {about})"


def _decimal_places(denominator: int) -> int:
    """Return how many places a fraction in lowest terms needs, or more than are shown if it never ends."""
    for places in range(1, _LONGEST_DECIMAL + 1):
        if 10**places % denominator == 0:
            return places
    return _LONGEST_DECIMAL + 1


CALCULATOR: Final = Tool(
    "calculator",
    "Calculate exactly, with whole numbers, decimals and fractions of any size that matters.",
    CalculatorParameters,
    calculator,
)
