"""Questions about pictures: reading numbers and words, counting shapes, the tallest bar; and what may be asked of each.

Numbers of three or four digits and words are held out by what they say, shorter numbers and charts by how they look.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from qwench.train.data import pictures
from qwench.train.data.pictures import Drawing, Grid, Size
from qwench.train.data.sample import Sample, assistant, held_out
from qwench.train.data.words import EVERY, made_up

LONGEST = 6  # letters
READ = ("What does the picture say?", "What is written here?", "Read this.", "Read what is written in the picture.")
NUMBER = (
    "What number is this?", "What number is this?", "Which number is this?", "What number do you see?", "Read the number.",
    "What number is in the picture?", "Which number is written here?", "What is the number?", "Read this number.",
)  # fmt: skip
WORD = (
    "What word is this?", "What word is this?", "Which word is this?", "What word do you see?", "Read the word.",
    "What word is in the picture?", "Which word is written here?", "What is the word?", "Read this word.",
)  # fmt: skip
COUNT = (
    "How many shapes are there?", "How many shapes are in the picture?", "How many shapes do you see?", "Count the shapes.",
    "How many things are there?", "How many shapes are in this picture?",
)  # fmt: skip
COUNT_FORM = (
    "How many {x}s are there?",
    "How many {x}s do you see?",
    "Count the {x}s.",
    "How many {x}s are in the picture?",
)
COLOUR = (
    "What colour are the shapes?", "What color are the shapes?", "Which colour do you see?", "Which color do you see?",
    "What colour is this?", "What color is this?", "What colour is in the picture?",
)  # fmt: skip
TALLEST = (
    "Which bar is the tallest?", "Which bar is tallest?", "What colour is the tallest bar?", "What color is the tallest bar?",
    "Which bar is the highest?", "What is the colour of the tallest bar?",
)  # fmt: skip
COUNT_BARS = (
    "How many bars are there?",
    "How many bars are in the chart?",
    "Count the bars.",
    "How many bars do you see?",
)
SHORT = [word.lower() for word in EVERY if len(word) <= LONGEST and word.isalpha()]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def a_number(rng: Random, held: bool) -> str:
    digits = rng.randint(1, 4)
    while True:
        number = rng.randrange(10 ** (digits - 1), 10**digits)
        if digits < 3 or held_out("seen", number) == held:
            return str(number)


def a_word(rng: Random, held: bool) -> str:
    """Held out are words; trained are the others, made-up ones, and letters without any sense."""
    while True:
        kind = 0.0 if held else rng.random()
        if kind < 0.45:
            word = rng.choice(SHORT)
        elif kind < 0.75:
            word = made_up(rng)[: rng.randint(2, LONGEST)]
        else:
            word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, LONGEST)))
        if held_out("seen", word) == held:
            return word


def number(rng: Random, size: Size, held: bool) -> Drawing:
    return pictures.written(rng, size, a_number(rng, held))


def word(rng: Random, size: Size, held: bool) -> Drawing:
    return pictures.written(rng, size, a_word(rng, held))


def shapes(rng: Random, size: Size, _held: bool) -> Drawing:
    return pictures.shapes(rng, size)


def bars(rng: Random, size: Size, _held: bool) -> Drawing:
    return pictures.bars(rng, size)


Sketch = Callable[[Random, Size, bool], Drawing]
# How each kind is drawn, and between which ratios of width to height.
KINDS: dict[str, tuple[Sketch, tuple[float, float]]] = {
    "number": (number, (1.0, 3.4)),
    "word": (word, (1.2, 3.4)),
    "shapes": (shapes, (0.9, 2.2)),
    "bars": (bars, (0.9, 2.2)),
}


def scene(rng: Random, shares: dict[str, float], grid: Grid | None = None) -> tuple[str, Drawing]:
    """A drawing for training, of a kind by its share; with ``grid`` one that is brought to this one."""
    while True:
        kind = rng.choices(list(shares), list(shares.values()))[0]
        sketch, ratios = KINDS[kind]
        size = pictures.canvas(rng, ratios)
        if grid is None or pictures.grid_of(size) == grid:
            return kind, sketch(rng, size, False)


def question(rng: Random, kind: str, drawing: Drawing) -> tuple[str, str]:
    """What is asked of a drawing, and the answer."""
    if kind in ("number", "word"):
        wordings = READ if rng.random() < 0.25 else NUMBER if kind == "number" else WORD
        return rng.choice(wordings), "".join(part or "" for part in drawing.caption)
    count, colour = drawing.caption
    assert count is not None
    if kind == "bars":
        assert colour is not None
        return (rng.choice(TALLEST), colour) if rng.random() < 0.6 else (rng.choice(COUNT_BARS), count)
    if colour and rng.random() < 0.25:
        return rng.choice(COLOUR), colour
    forms = {form for form, _ in drawing.boxes}
    if len(forms) == 1 and rng.random() < 0.4:
        return rng.choice(COUNT_FORM).format(x=forms.pop()), count
    return rng.choice(COUNT), count


def seen(rng: Random, held: bool, kind: str) -> Sample:
    """A picture and a question about it. What is read is written letter by letter, as it is seen."""
    sketch, ratios = KINDS[kind]
    drawing = sketch(rng, pictures.canvas(rng, ratios), held)
    asked, answer = question(rng, kind, drawing)
    parts = [{"type": "image"}, {"type": "text", "text": asked}]
    message = {"role": "user", "content": parts if rng.random() < 0.85 else parts[::-1]}
    return Sample(f"seen {kind}", (message, assistant(answer)), drawings=(drawing,), spelled=kind == "word")
