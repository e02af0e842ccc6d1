"""Turns samples into token ids and a mask of what is learnt: exactly what inference tokenises, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import Tokenizer

from qwench.train.data.pictures import COLOURS, FACTOR, Drawing, Grid, grid_of
from qwench.train.data.sample import Sample
from qwench.train.template import render

END, PAD = "<|im_end|>", "<|image_pad|>"
# What a row of the tower may say, besides nothing; each is one token.
SAYINGS = (*"0123456789abcdefghijklmnopqrstuvwxyz", *COLOURS)
NOTHING, FREE = len(SAYINGS), -1


@dataclass(frozen=True)
class Shown:
    """A picture as the model sees it, at place `first` of its row; `caption` has an index of SAYINGS for each token."""

    first: int
    pixels: npt.NDArray[np.uint8]  # [height, width, 3]
    grid: Grid
    caption: list[int]


@dataclass(frozen=True)
class Row:
    """`learn[i]` is true where `ids[i]` is to be predicted from what was read before it."""

    ids: list[int]
    learn: list[bool]
    read: list[int]  # what the model is shown in the place of `ids`
    shown: tuple[Shown, ...] = ()


def prompt_text(sample: Sample, upto: int) -> str:
    """What the engine would be given to write message `upto`."""
    return render(
        list(sample.messages[:upto]),
        list(sample.tools) or None,
        add_generation_prompt=True,
        enable_thinking=sample.thinking,
    )


def parts(sample: Sample) -> list[tuple[str, bool]]:
    """The conversation cut into what is given (False) and what the model writes (True).

    All answers after the last question are written; earlier ones are rendered without their thinking block, so
    they are never what inference would have produced.
    """
    if sample.text:
        return [(sample.text + "<|endoftext|>", True)]
    last = max(index for index, message in enumerate(sample.messages) if message["role"] == "user")
    found: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(sample.messages):
        if index < last or message["role"] != "assistant":
            continue
        given = prompt_text(sample, index)
        whole = render(list(sample.messages[: index + 1]), list(sample.tools) or None)
        if not (given.startswith(done) and whole.startswith(given) and whole.endswith(END + "\n")):
            raise ValueError("the answer's render does not continue its prompt")
        found += [(given[len(done) :], False), (whole[len(given) : -1], True)]
        done = whole[:-1]
    return found


def look(drawing: Drawing, first: int = 0) -> Shown:
    """Resized as the engine does it."""
    rows, columns = grid_of(drawing.picture.size)
    size = (columns * FACTOR, rows * FACTOR)
    pixels = np.asarray(drawing.picture.resize(size, Image.Resampling.BICUBIC))
    caption = [FREE if word is None else SAYINGS.index(word) for word in drawing.caption[: rows * columns]]
    return Shown(first, pixels, (rows, columns), caption + [NOTHING] * (rows * columns - len(caption)))


def encode(tokenizer: Tokenizer, sample: Sample) -> Row:
    """A picture has as many placeholders as tokens."""
    ids: list[int] = []
    learn: list[bool] = []
    shown: list[Shown] = []
    pad, waiting = tokenizer.token_to_id(PAD), iter(sample.drawings)
    for text, written in parts(sample):
        pieces = [*text.removesuffix(END), END] if written and sample.spelled else [text]
        for token in (token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False).ids):
            count = 1
            if token == pad:
                shown.append(look(next(waiting), len(ids)))
                count = len(shown[-1].caption)
            ids += [token] * count
            learn += [written] * count
    return Row(ids, learn, ids, tuple(shown))


def disturbed(row: Row, rng: Random, share: float) -> Row:
    """Show a share of the written tokens as others of the same row while the targets stay.

    So the model learns to go on rightly after a slip of its own, which else can end in a loop.
    """
    read = [
        rng.choice(row.ids) if written and rng.random() < share else token
        for token, written in zip(row.ids, row.learn, strict=True)
    ]
    return replace(row, read=read)
