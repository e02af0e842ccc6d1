"""Turns samples into token ids and a mask of what is learnt: exactly what inference tokenises, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer

from qwench.train.data.sample import Sample
from qwench.train.template import render

END = "<|im_end|>"


@dataclass(frozen=True)
class Row:
    """`learn[i]` is true where `ids[i]` is to be predicted from what was read before it."""

    ids: list[int]
    learn: list[bool]
    read: list[int]  # what the model is shown in the place of `ids`


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


def encode(tokenizer: Tokenizer, sample: Sample) -> Row:
    ids: list[int] = []
    learn: list[bool] = []
    for text, written in parts(sample):
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        learn += [written] * len(piece)
    return Row(ids, learn, ids)


def disturbed(row: Row, rng: Random, share: float) -> Row:
    """Show a share of the written tokens as others of the same row while the targets stay.

    So the model learns to go on rightly after a slip of its own, which else can end in a loop.
    """
    read = [
        rng.choice(row.ids) if written and rng.random() < share else token
        for token, written in zip(row.ids, row.learn, strict=True)
    ]
    return Row(row.ids, row.learn, read)
