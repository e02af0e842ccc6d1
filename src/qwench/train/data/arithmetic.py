"""Sums, differences and products, each with and without thinking; the thought is written column by column.

Every step of a thought is local (one digit joins a running total), so a small model can learn each by heart.
"""

from __future__ import annotations

from random import Random

from qwench.train.data.sample import Sample, assistant, held_out, user

ADD = (
    "What is {x}?", "What is {x}?", "what is {x}", "What's {x}?", "{x}", "{x} = ?", "{x}=", "{x} =", "Compute {x}.", "Compute {x}",
    "Calculate {x}.", "Calculate {x}", "How much is {x}?", "Please compute {x}.", "Tell me {x}.", "Solve {x}.", "Solve: {x}",
    "Can you calculate {x}?", "Can you compute {x} for me?", "What does {x} equal?", "What is the result of {x}?", "Evaluate {x}.",
    "Hi, what is {x}?", "Hello! What is {x}?", "How much is {x}", "What is {x} please?", "I need to know {x}.", "Work out {x}.",
)  # fmt: skip
ADD_WORDS = (
    "Add {a} and {b}.", "Add {a} to {b}.", "Add {a} and {b}", "What is the sum of {a} and {b}?", "Please add {a} and {b}.",
    "What is {a} plus {b}?", "How much is {a} plus {b}?", "Sum {a} and {b}.", "What do you get if you add {a} and {b}?",
    "{a} plus {b}", "Find the sum of {a} and {b}.", "I have {a} apples and get {b} more. How many do I have?",
    "Tom has {a} coins and finds {b} more. How many coins does he have?", "Can you add {a} and {b}?",
)  # fmt: skip
SUB_WORDS = (
    "What is {a} minus {b}?", "Subtract {b} from {a}.", "How much is {a} minus {b}?", "Take {b} away from {a}.",
    "{a} minus {b}", "What is the difference of {a} and {b}?", "I have {a} apples and give away {b}. How many are left?",
    "Please subtract {b} from {a}.", "What is left if I take {b} from {a}?",
)  # fmt: skip
MUL_WORDS = (
    "What is {a} times {b}?", "Multiply {a} by {b}.", "Multiply {a} and {b}.", "How much is {a} times {b}?", "{a} times {b}",
    "What is the product of {a} and {b}?", "Please multiply {a} by {b}.",
)  # fmt: skip
SIGNS = {"+": (" + ", "+", " + "), "-": (" - ", "-", " - "), "*": (" * ", " x ", "*", " × ")}
WORDS = {"+": ADD_WORDS, "-": SUB_WORDS, "*": MUL_WORDS}


def digits(number: int) -> list[int]:
    """Digits from the right."""
    return [int(digit) for digit in reversed(str(number))]


def column_sum(numbers: list[int]) -> str:
    """`47+38` -> `0+7=7+8=15` and `1+4=5+3=8`: each line starts with the carry, ends with the column's total."""
    columns, lines, carry = [digits(number) for number in numbers], [], 0
    for place in range(max(len(column) for column in columns)):
        total, line = carry, str(carry)
        for column in columns:
            if place < len(column):
                total += column[place]
                line += f"+{column[place]}={total}"
        lines.append(line)
        carry = total // 10
    return "\n".join(lines)


def column_difference(a: int, b: int) -> str:
    """`83-47` -> `3-7-0=-4+10=6`, `8-4-1=3`: the third number is the borrow."""
    lower, lines, borrow = digits(b), [], 0
    for place, top in enumerate(digits(a)):
        under = lower[place] if place < len(lower) else 0
        value = top - under - borrow
        lines.append(f"{top}-{under}-{borrow}={value}" + (f"+10={value + 10}" if value < 0 else ""))
        borrow = 1 if value < 0 else 0
    return "\n".join(lines)


def difference(a: int, b: int) -> str:
    if a < b:
        return f"{a}<{b}\n{column_difference(b, a)}\n={a - b}"
    return f"{column_difference(a, b)}\n={a - b}"


def product(a: int, b: int) -> str:
    """Partial products digit by digit, then their column sum."""
    lines, parts = [], []
    for place, factor in enumerate(digits(b)):
        carry, steps = 0, []
        for digit in digits(a):
            value = factor * digit + carry
            steps.append(f"{factor}*{digit}+{carry}={value}")
            carry = value // 10
        parts.append(a * factor * 10**place)
        lines.append("\n".join(steps) + f"\n={parts[-1]}")
    if len(parts) > 1:
        lines.append(column_sum(parts) + f"\n={a * b}")
    return "\n".join(lines)


def phrase(rng: Random, sign: str, numbers: list[int]) -> str:
    if len(numbers) == 2 and rng.random() < 0.3:
        return rng.choice(WORDS[sign]).format(a=numbers[0], b=numbers[1])
    return rng.choice(ADD).format(x=rng.choice(SIGNS[sign]).join(map(str, numbers)))


def problem(rng: Random, skill: str, sign: str, numbers: list[int], thinking: bool) -> Sample:
    if sign == "+":
        answer, reasoning = sum(numbers), f"{column_sum(numbers)}\n={sum(numbers)}"
    elif sign == "-":
        answer, reasoning = numbers[0] - numbers[1], difference(*numbers)
    else:
        answer, reasoning = numbers[0] * numbers[1], product(*numbers)
    reply = assistant(str(answer), reasoning if thinking else "")
    return Sample(skill, (user(phrase(rng, sign, numbers)), reply), thinking=thinking)


def number(rng: Random, size: int) -> int:
    return rng.randrange(10 ** (size - 1) if size > 1 else 0, 10**size)


def draw(rng: Random, sizes: tuple[int, ...], held: bool, sign: str) -> list[int]:
    """Numbers of these sizes whose tuple is on the wanted side of the split.

    Pairs of single digits are too few to split: they are training material only.
    """
    while True:
        numbers = [number(rng, size) for size in sizes]
        if sizes == (1, 1) or held_out(sign, tuple(sorted(numbers))) == held:
            return numbers


def addition(rng: Random, held: bool, thinking: bool, top: int = 4) -> Sample:
    weights = (1, 4, 4, 2) if thinking else (1, 4, 1.5, 0.3)
    size = rng.choices(range(1, top + 1), weights[:top])[0]
    other = size if rng.random() < 0.7 else rng.randint(1, size)
    sizes = (size, other) if rng.random() < 0.5 else (other, size)
    return problem(rng, "sum", "+", draw(rng, sizes, held, "+"), thinking)


def subtraction(rng: Random, held: bool, thinking: bool) -> Sample:
    size = rng.choices((1, 2, 3), (1, 4, 3 if thinking else 1))[0]
    other = size if rng.random() < 0.7 else rng.randint(1, size)
    negative = rng.random() < 0.12
    while True:
        low, high = sorted((number(rng, size), number(rng, other)))
        pair = [low, high] if negative else [high, low]
        if size == 1 or held_out("-", tuple(pair)) == held:
            return problem(rng, "difference", "-", pair, thinking)


def long_sum(rng: Random, held: bool, thinking: bool) -> Sample:
    count, size = rng.choice((3, 4, 4)), rng.choice((1, 2, 2, 2))
    return problem(rng, "long sum", "+", draw(rng, (size,) * count, held, "+"), thinking)


def multiplication(rng: Random, held: bool, thinking: bool) -> Sample:
    sizes = rng.choices(((1, 1), (2, 1), (2, 2)), (2, 3, 4) if thinking else (3, 2, 1))[0]
    return problem(rng, "product", "*", draw(rng, sizes, held, "*"), thinking)
