"""Exact arithmetic, compared with fractions worked out another way."""

import operator
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tools.arithmetic import MAX_DEPTH, MAX_DIGITS, MAX_LENGTH, ArithmeticRefused, evaluate
from app.tools.calculator import exact


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("6*7", "42"),
        (" 6 * 7 ", "42"),
        ("1/3", "1/3 (about 0.33333333333333333333)"),
        ("-1/3", "-1/3 (about -0.33333333333333333333)"),
        ("0.1+0.2", "0.3"),
        ("-0.5", "-0.5"),
        ("1e3 + .5 + 2.", "1002.5"),
        ("2.50 * 2", "5"),
        ("-2**2", "-4"),
        ("2**-1", "0.5"),
        ("2**3**2", "512"),
        ("2^10", "1024"),
        ("(-2)**2", "4"),
        ("-7//2", "-4"),
        ("-7%3", "2"),
        ("7.5 % 2", "1.5"),
        ("3x4 \u00d7 2 \u00f7 3 \u2212 1", "7"),
        ("2 - 3 - 4", "-5"),
        ("24 / 4 / 2", "3"),
        ("1--1", "2"),
        ("max(1, 2*3, 4) + min(5, 2) + abs(-1)", "9"),
        ("floor(-1/2) + ceil(1/2)", "0"),
        ("round(2.5) + round(1/3, 2)", "2.33"),
        ("1**(10**400)", "1"),
        ("2**1000", str(2**1000)),
        ("1/2**60", "0." + str(5**60).rjust(60, "0")),
        ("1/2**61", f"1/{2**61} (about 4.3368086899420177360E-19)"),
    ],
)
def test_examples(expression, answer):
    """People's notation, Python's precedence, and no rounding anywhere."""
    assert exact(evaluate(expression)) == answer


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "the expression ends at character 1"),
        ("1 +", "the expression ends at character 4"),
        ("1 2", "'2' is not expected at character 3"),
        ("(1", "')' was expected"),
        ("1)", "')' is not expected at character 2"),
        ("6*", "ends"),
        ("1,000", "',' is not expected"),
        ("pi", "'pi' at character 1 is not one of: abs"),
        ("__import__('os')", "'_' is not expected at character 1"),
        ("abs(1, 2)", "abs takes one value"),
        ("round(1, 2, 3)", "round takes a value"),
        ("round(1, 0.5)", "round takes a value"),
        ("abs 1", "'(' was expected"),
        ("1/0", "division by zero"),
        ("1//(2-2)", "division by zero"),
        ("1%0", "division by zero"),
        ("0**-1", "division by zero"),
        ("2**0.5", "an exponent must be a whole number"),
        ("9**9**9", f"more than {MAX_DIGITS} digits"),
        ("9**9**9**9**9", f"more than {MAX_DIGITS} digits"),
        ("0.1**1000", f"more than {MAX_DIGITS} digits"),
        ("2**-(10**400)", f"more than {MAX_DIGITS} digits"),
        ("1e501", f"more than {MAX_DIGITS} digits"),
        ("1e999999999999", f"more than {MAX_DIGITS} digits"),
        ("1e400*1e400", f"more than {MAX_DIGITS} digits"),
        ("1" * (MAX_LENGTH + 1), "longer than"),
        ("9" * MAX_LENGTH, f"more than {MAX_DIGITS} digits"),
        ("(" * 400 + "1" + ")" * 400, f"nested deeper than {MAX_DEPTH}"),
        ("1**" * 300 + "1", f"nested deeper than {MAX_DEPTH}"),
        ("\u0663 + 1", "is not expected at character 1"),
        ("1\0", "is not expected at character 2"),
    ],
)
def test_refusals(expression, reason):
    """What is not arithmetic, or is too large, is refused in words that say what and where."""
    with pytest.raises(ArithmeticRefused) as refused:
        evaluate(expression)
    assert reason in str(refused.value)


def test_signs_are_no_recursion():
    """A thousand signs are one value, not a thousand frames."""
    assert evaluate("-" * 998 + "1") == 1


_NUMBERS = st.one_of(
    st.integers(0, 10**12).map(lambda n: (str(n), Fraction(n))),
    st.decimals(0, 1000, places=3).map(lambda d: (str(d), Fraction(d))),
)
_OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


@st.composite
def _pairs(draw, parts):
    (left, a), (right, b), symbol = draw(parts), draw(parts), draw(st.sampled_from(sorted(_OPERATORS)))
    if b == 0 and symbol in {"/", "//", "%"}:
        symbol = "+"
    return f"({left}){symbol}({right})", Fraction(_OPERATORS[symbol](a, b))


_negated = lambda parts: parts.map(lambda part: (f"-({part[0]})", -part[1]))  # noqa: E731  # one line of a grammar


@given(st.recursive(_NUMBERS, lambda parts: _pairs(parts) | _negated(parts), max_leaves=12))
def test_agrees_with_fractions(case):
    """Any expression has the value that fractions give it, and the text of a decimal is that very value."""
    expression, value = case
    assert evaluate(expression) == value
    assert Fraction(exact(value).partition(" ")[0]) == value


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 99)), min_size=1, max_size=20))
def test_precedence_is_that_of_python(terms):
    """Without brackets, what binds first is what binds first in Python."""
    expression = "1" + "".join(f"{symbol}{number}" for symbol, number in terms)
    assert evaluate(expression) == eval(expression)  # our own digits and signs


@given(st.text(alphabet="0123456789+-*/%^().,e xmaxabsround\u00d7\0\ud800", max_size=60))
def test_any_text_is_answered_or_refused(text):
    """Nothing but a refusal comes out of nonsense."""
    with suppress(ArithmeticRefused):
        assert isinstance(evaluate(text), Fraction)
