"""What one line of a benchmark measures: a prompt read, or tokens decoded at a depth by a batch. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwench.errors import UsageError

PREFILL = (128, 512, 2048)
DEPTHS = (0, 4096, 32768)
BATCHES = (1, 4, 8, 16)
DECODE = 32  # tokens of each sequence in one sample
BATCH_DEPTH = 128  # what every sequence of a batch remembers: some tools cannot measure a batch without a prompt
NOTHING = "none"


@dataclass(frozen=True)
class Row:
    """``batch`` sequences of ``depth`` known tokens: each reads ``prefill`` more, or decodes ``decode``."""

    prefill: int = 0
    decode: int = 0
    depth: int = 0
    batch: int = 1

    @property
    def name(self) -> str:
        if self.prefill:
            return f"prefill {self.prefill}"
        if self.batch > 1:
            return f"decode, batch {self.batch}"
        return f"decode at {self.depth}" if self.depth else "decode"

    @property
    def longest(self) -> int:
        """Tokens that each sequence comes to, with room for a warm-up."""
        return self.depth + self.prefill + self.decode + WARM_STEPS + 1

    @property
    def tokens(self) -> int:
        """Tokens of all sequences together that one sample counts."""
        return self.batch * (self.prefill + self.decode)


WARM_STEPS = 2  # of a decode row, not counted


def make_rows(prefill: Sequence[int], depths: Sequence[int], batches: Sequence[int], decode: int) -> list[Row]:
    """Prompts, then depths with one sequence, then batches. A batch of 1 is a depth of 0 already."""
    rows = [Row(prefill=count) for count in prefill]
    rows += [Row(decode=decode, depth=depth) for depth in depths]
    alone = [Row(decode=decode)] if 1 in batches and not depths else []
    return rows + alone + [Row(decode=decode, depth=BATCH_DEPTH, batch=count) for count in batches if count > 1]


def read_list(text: str, flag: str, least: int) -> tuple[int, ...]:
    """``128,512`` as numbers; none of them for "none". Raises UsageError naming the flag."""
    if text == NOTHING:
        return ()
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < least:
        raise UsageError(f"{flag} is {text!r}; give whole numbers of at least {least} such as 128,512, or {NOTHING}.")
    return tuple(dict.fromkeys(values))
