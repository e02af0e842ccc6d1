"""Batch: the only input of the model. Prompt chunks and single tokens of many sequences, side by side.

Legend of shapes, used everywhere:
    T tokens of the step     R rows (sequences)      L rows of logits        V vocabulary      H hidden size
    Hq query heads           Hk key heads            Hv value heads          D head dim        E experts
    C convolution channels   K convolution taps (or key heads of attention)  P pages of a row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

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
    """token_ids [T]; positions [3, T] (time, height, width; equal for text).

    logit_tokens [L] are the places among the T tokens whose successor is asked for. ``pictures`` say which of the
    tokens stand for something else than their ids.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    rows: Rows
    logit_tokens: torch.Tensor
    pictures: tuple[Picture, ...] = ()


class CacheTensors(Protocol):
    """What the model reads and advances, one tensor per layer of the kind; shapes are given in cache/storage."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    conv: list[torch.Tensor]
    recurrent: list[torch.Tensor]
