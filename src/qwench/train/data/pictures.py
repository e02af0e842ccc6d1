"""Draws what the model learns to see, letters, shapes and bars, and says what stands where.

Knows neither questions nor tokens: a drawing is a function of the random numbers and the size it is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from qwench.media.sizes import fitting_size

FACTOR = 32  # pixels of a token's side
PIXELS = (8192, 12288)  # what the preprocessing of the embedded model brings every picture to: 8 to 12 tokens
FACES = ("", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf")  # "" is Pillow's own
FORMS = ("circle", "square", "triangle")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35), "blue": (40, 70, 215), "green": (30, 150, 50), "orange": (245, 140, 20),
    "purple": (135, 45, 165), "black": (20, 20, 20),
}  # fmt: skip
SYMBOLS = (*"0123456789abcdefghijklmnopqrstuvwxyz", *FORMS, "bar")
LABELS = 2 * len(SYMBOLS) + 1  # nothing, part of a symbol, its middle

Size = tuple[int, int]  # width and height in pixels
Grid = tuple[int, int]  # rows and columns of tokens
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Drawing:
    """``caption`` is what the rows of the tower shall say, one word each; None leaves a row free."""

    picture: Image.Image
    caption: tuple[str | None, ...]
    boxes: tuple[tuple[str, Box], ...]


def canvas(rng: Random, ratios: tuple[float, float]) -> Size:
    """A size with a ratio of its sides between these, mostly such that nothing is left to resize."""
    ratio = math.exp(rng.uniform(math.log(ratios[0]), math.log(ratios[1])))
    width = rng.uniform(90, 240)
    size = (round(width), round(width / ratio))
    fitted = fitting_size(*size, FACTOR, PIXELS)
    return fitted if rng.random() < 0.6 and fitting_size(*fitted, FACTOR, PIXELS) == fitted else size


def grid_of(size: Size) -> Grid:
    width, height = fitting_size(*size, FACTOR, PIXELS)
    return height // FACTOR, width // FACTOR


@lru_cache(maxsize=1024)
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """A face that is not installed is drawn in Pillow's own."""
    if face:
        try:
            return ImageFont.truetype(face, size)
        except OSError:
            pass
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return own


def colours(rng: Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ink and ground: mostly black on white, else dark on light or light on dark."""
    kind = rng.random()
    if kind < 0.6:
        return (rng.randint(0, 60),) * 3, (rng.randint(235, 255),) * 3
    dark = tuple(rng.randint(0, 110) for _ in range(3))
    light = tuple(rng.randint(190, 255) for _ in range(3))
    return (dark, light) if kind < 0.88 else (light, dark)


def written(rng: Random, size: Size, text: str) -> Drawing:
    """``text`` on one line, somewhere near the middle; the longer it is, the more of the picture it fills."""
    width, height = size
    face = rng.choice(FACES)
    left, top, right, bottom = font(face, 64).getbbox(text)
    most = 64 * min(0.94 * width / (right - left), 0.88 * height / (bottom - top))
    chosen = font(face, max(9, int(most * rng.uniform(min(0.85, 0.42 + 0.07 * len(text)), 1.0))))
    left, top, right, bottom = chosen.getbbox(text)
    x = max(0.0, width - (right - left)) * rng.triangular(0, 1, 0.5) - left
    y = max(0.0, height - (bottom - top)) * rng.triangular(0, 1, 0.5) - top
    ink, ground = colours(rng)
    picture = Image.new("RGB", size, ground)
    ImageDraw.Draw(picture).text((x, y), text, fill=ink, font=chosen)
    boxes = []
    for index, letter in enumerate(text):
        start = x + chosen.getlength(text[:index])
        box = chosen.getbbox(letter)
        boxes.append((letter, (start + box[0], y + box[1], start + box[2], y + box[3])))
    return Drawing(picture, tuple(text), tuple(boxes))


def shapes(rng: Random, size: Size) -> Drawing:
    """One to five shapes that do not touch, mostly of one form and one colour."""
    count = rng.randint(1, 5)
    forms = [rng.choice(FORMS)] * count if rng.random() < 0.7 else [rng.choice(FORMS) for _ in range(count)]
    names = [rng.choice(list(COLOURS))] * count
    if rng.random() < 0.25:
        names = [rng.choice(list(COLOURS)) for _ in range(count)]
    picture = Image.new("RGB", size, (rng.randint(235, 255),) * 3)
    draw, boxes = ImageDraw.Draw(picture), []
    for form, name, (x, y, radius) in zip(forms, names, _apart(rng, size, count), strict=True):
        box = (x - radius, y - radius, x + radius, y + radius)
        ink = COLOURS[name]
        if form == "circle":
            draw.ellipse(box, fill=ink)
        elif form == "square":
            draw.rectangle(box, fill=ink)
        else:
            draw.polygon([(x, box[1]), (box[2], box[3]), (box[0], box[3])], fill=ink)
        boxes.append((form, box))
    colour = names[0] if len(set(names)) == 1 else None
    return Drawing(picture, (str(count), colour), tuple(boxes))


def _apart(rng: Random, size: Size, count: int) -> list[tuple[float, float, float]]:
    """Middles and radii of things that do not touch each other or the edge."""
    width, height = size
    unit = math.sqrt(width * height)
    while True:
        most, found = rng.uniform(0.1, 0.17) * unit, list[tuple[float, float, float]]()
        for _ in range(12 * count):
            radius = most * rng.uniform(0.8, 1.0)
            edge = radius + 0.02 * unit
            x, y = rng.uniform(edge, width - edge), rng.uniform(edge, height - edge)
            if all(max(abs(x - a), abs(y - b)) > radius + other + 0.03 * unit for a, b, other in found):
                found.append((x, y, radius))
            if len(found) == count:
                return found


def bars(rng: Random, size: Size) -> Drawing:
    """A chart of two to four bars in colours of their own, one of them clearly the tallest."""
    width, height = size
    count = rng.randint(2, 4)
    names = rng.sample(list(COLOURS), count)
    levels = rng.sample(range(2, 10), count)
    picture = Image.new("RGB", size, (rng.randint(235, 255),) * 3)
    draw, boxes = ImageDraw.Draw(picture), []
    floor, slot = 0.94 * height, 0.92 * width / count
    thick = slot * rng.uniform(0.5, 0.8)
    for index, (name, level) in enumerate(zip(names, levels, strict=True)):
        left = 0.04 * width + index * slot + (slot - thick) / 2
        box = (left, floor - level / 9 * 0.86 * height, left + thick, floor)
        draw.rectangle(box, fill=COLOURS[name])
        boxes.append(("bar", box))
    draw.line((0.02 * width, floor, 0.98 * width, floor), fill=(60, 60, 60))
    return Drawing(picture, (str(count), names[levels.index(max(levels))]), tuple(boxes))


def labels(drawing: Drawing) -> npt.NDArray[np.int64]:
    """What each patch shows, [2 * rows, 2 * columns] of the grid: 0, or 1 + 2 * symbol, and one more in its middle."""
    rows, columns = (2 * side for side in grid_of(drawing.picture.size))
    width, height = drawing.picture.size
    found = np.zeros((rows, columns), np.int64)
    middles = []
    for symbol, (left, top, right, bottom) in drawing.boxes:
        kind = 1 + 2 * SYMBOLS.index(symbol)
        across, down = (left / width * columns, right / width * columns), (top / height * rows, bottom / height * rows)
        # A patch shows what reaches its middle, or nearly.
        reach = [slice(max(0, math.ceil(low - 0.75)), math.floor(high - 0.25) + 1) for low, high in (down, across)]
        found[reach[0], reach[1]] = kind
        middles.append((int(sum(down) / 2), int(sum(across) / 2), kind + 1))
    for row, column, kind in middles:
        found[min(row, rows - 1), min(column, columns - 1)] = kind
    return found
