"""Rows: how T tokens of a step are divided among R sequences. The ragged layout every sequence operation shares.

Tokens of a row are neighbours; rows of a single token come first, so that recurrent steps of many sequences are one
slice. It does not know what a request is.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Rows:
    """``lengths``: tokens per row, T in all, ones first. ``contexts``: tokens in the cache after this step, per row.

    ``page_table`` [R, P]: the pages of a row in order (padding is never read). ``kv_slots`` [T]: where the key and
    value of each token are written, page * page_size + offset. ``state_slots`` [R]: the recurrent state of each row.
    ``saves``: (token, slot), tokens ascending: what the state is behind that token is also written to that slot, which
    is no row's.
    What follows from these is worked out once, for all layers of the step.
    """

    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    page_table: torch.Tensor
    page_size: int
    kv_slots: torch.Tensor
    state_slots: torch.Tensor
    saves: tuple[tuple[int, int], ...] = ()

    @cached_property
    def num_single(self) -> int:
        """How many leading rows hold exactly one token."""
        return next((index for index, length in enumerate(self.lengths) if length > 1), len(self.lengths))

    @cached_property
    def starts(self) -> torch.Tensor:
        """[R + 1] where each row's tokens begin, and their end."""
        return torch.tensor([0, *itertools.accumulate(self.lengths)], dtype=torch.int64)

    @cached_property
    def context_lengths(self) -> torch.Tensor:
        """[R] ``contexts``."""
        return torch.tensor(self.contexts, dtype=torch.int64)

    @cached_property
    def save_tokens(self) -> torch.Tensor:
        """[S] the tokens of ``saves``."""
        return torch.tensor([token for token, _ in self.saves], dtype=torch.int64)

    @cached_property
    def save_slots(self) -> torch.Tensor:
        """[S] the slots of ``saves``."""
        return torch.tensor([slot for _, slot in self.saves], dtype=torch.int64)

    def spans(self, first: int = 0) -> Iterator[tuple[int, slice]]:
        """(row, its slice of the T tokens) from row ``first`` on."""
        start = sum(self.lengths[:first])
        for row in range(first, len(self.lengths)):
            yield row, slice(start, start + self.lengths[row])
            start += self.lengths[row]

    def pieces(self, span: slice) -> Iterator[tuple[slice, int | None]]:
        """A row's tokens up to each of its saves, and that save's slot; behind the last, None."""
        start = span.start
        first = bisect.bisect_left(self.saves, (start, 0))
        for token, slot in itertools.takewhile(lambda save: save[0] < span.stop, self.saves[first:]):
            yield slice(start, token + 1), slot
            start = token + 1
        if start < span.stop:
            yield slice(start, span.stop), None

    def context_slots(self, row: int) -> torch.Tensor:
        """[context] the cache slots of everything the row's last token may see, oldest first."""
        context = self.contexts[row]
        pages = self.page_table[row, : -(-context // self.page_size)]
        offsets = torch.arange(self.page_size, device=pages.device)
        return (pages[:, None] * self.page_size + offsets).flatten()[:context]
