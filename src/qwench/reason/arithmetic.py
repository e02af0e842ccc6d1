"""Sums written in a text, worked out exactly. Knows digits, + - * / ** and brackets, and nothing that takes long."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

MAX_CHARACTERS = 300
MAX_TEXT = 8_000  # characters, from the end
MAX_BITS = 4096  # of any number on the way
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "[": "(", "]": ")"})
# Every repetition is bounded and no term can be read in two ways, so that no text makes the search slow.
NUMBER = r"(?<![\d.,])(?:\d{1,3}(?:,\d{3}){1,6}|\d{1,40})(?:\.\d{1,40})?(?!\d)"
TERM = rf"(?>\({{0,5}}(?:[-−]\({{0,5}})?{NUMBER}\){{0,5}})"
OPERATOR = r"(?:\*\*|[-+*/×·÷−^]|(?<=[\s\d])x(?=[\s\d]))"
EXPRESSION = rf"{TERM}(?:\s{{0,3}}{OPERATOR}\s{{0,3}}{TERM}){{1,20}}"
FOUND = re.compile(EXPRESSION)
EQUATION = re.compile(rf"({EXPRESSION})\s{{0,3}}=\s{{0,3}}({TERM})(?!\s{{0,3}}{OPERATOR}\s{{0,3}}[(\d])")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def expressions(text: str) -> list[str]:
    """Everything in ``text`` that is something to work out."""
    return [found.group() for found in FOUND.finditer(text[-MAX_TEXT:]) if value(found.group()) is not None]


def equations(text: str) -> list[tuple[str, str, bool]]:
    """Every "expression = number" in ``text`` that can be worked out, and whether it is true."""
    stated = []
    for found in EQUATION.finditer(text[-MAX_TEXT:]):
        left, right = value(found.group(1)), value(found.group(2))
        if left is not None and right is not None:
            stated.append((found.group(1), found.group(2), left == right))
    return stated


def value(expression: str) -> Fraction | None:
    """What ``expression`` comes to; None for what is none, divides by zero or grows beyond all measure."""
    if len(expression) > MAX_CHARACTERS:
        return None
    text = THOUSANDS.sub("", expression).replace("^", "**").replace("x", "*").translate(SIGNS)
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(ast.unparse(node)) if isinstance(number, float) else Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            return _small(_operate(operator, _value(left), _value(right)))
    raise ValueError("neither a number nor an operation")


def _operate(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.Pow() if right.denominator == 1 and abs(right) * _bits(left) <= MAX_BITS:
            return Fraction(left ** int(right))
    raise ValueError("an operation that is not arithmetic, or too much of it")


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _small(number: Fraction) -> Fraction:
    if _bits(number) > MAX_BITS:
        raise ValueError("too large")
    return number
