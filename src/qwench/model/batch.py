"""Batch: the only input of the model. Prompt chunks and single tokens of many sequences, side by side.

Legend of shapes, used everywhere:
    T tokens of the step     R rows (sequences)      L rows of logits        V vocabulary      H hidden size
    Hq query heads           Hk key heads            Hv value heads          D head dim        E experts
    C convolution channels   K convolution taps (or key heads of attention)  P pages of a row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qwench.ops.arrays import Array, Host
from qwench.ops.rows import Rows


@dataclass(frozen=True)
class Picture:
    """``count`` tokens from ``first`` on show what was seen of ``digest``: its rows from ``row`` on."""

    digest: bytes
    row: int
    first: int
    count: int


@dataclass(frozen=True)
class Batch:
    """token_ids [T]; positions [3, T] (time, height, width; equal for text): arrays in main memory.

    logit_tokens [L] are the places among the T tokens whose successor is asked for; few_logits is that of
    ops/operations. ``pictures`` say which of the tokens stand for something else than their ids.
    """

    token_ids: Host
    positions: Host
    rows: Rows
    logit_tokens: Host
    few_logits: Host | None = None  # without it all count
    pictures: tuple[Picture, ...] = ()


class CacheTensors(Protocol):
    """What the model reads and advances, one array per layer of the kind; shapes are given in cache/storage."""

    keys: list[Array]
    values: list[Array]
    conv: list[Array]
    recurrent: list[Array]
