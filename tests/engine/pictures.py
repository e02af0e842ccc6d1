"""Pictures and videos of noise, prompts that show them, and what transformers says to those."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qwench.engine.request import MediaSpan

IMAGE, VIDEO, OPEN, CLOSE = 301, 302, 303, 304
TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": OPEN, "vision_end_token_id": CLOSE}
NEVER = {IMAGE: -100.0, VIDEO: -100.0}  # to be drawn: the reference would look for what it shows


@dataclass(frozen=True)
class Shown:
    patches: np.ndarray
    grid: tuple[int, int, int]
    digest: bytes
    kind: str = "image"
    seconds: tuple[float, ...] = ()


def picture(height: int, width: int, seed: int) -> Shown:
    """Noise of so many patches."""
    return _drawn((1, height, width), seed, "image", ())


def video(moments: int, height: int, width: int, seed: int) -> Shown:
    return _drawn((moments, height, width), seed, "video", tuple(0.5 + moment for moment in range(moments)))


def _drawn(grid: tuple[int, int, int], seed: int, kind: str, seconds: tuple[float, ...]) -> Shown:
    patches = np.random.default_rng(seed).uniform(-1, 1, (grid[0] * grid[1] * grid[2], 1536)).astype(np.float32)
    return Shown(patches, grid, hashlib.sha256(patches.tobytes()).digest(), kind, seconds)


def prompt(parts: Sequence[Shown | int], seed: int) -> tuple[list[int], list[MediaSpan]]:
    """Of text, given as numbers of tokens, and what is shown between; a moment of a video has a time before it."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    spans: list[MediaSpan] = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(0, 300, (part,), generator=generator).tolist()
            continue
        moments, height, width = part.grid
        firsts = []
        for moment in range(moments):
            ids += [*([40, 41, moment] if part.seconds else []), OPEN]
            firsts.append(len(ids))
            ids += [VIDEO if part.seconds else IMAGE] * (height * width // 4) + [CLOSE]
        spans.append(MediaSpan(firsts[0], len(ids) - 1 - firsts[0], part))
    return ids, spans


@torch.inference_mode()
def reference_logits(model: Any, ids: Sequence[int], shown: Sequence[Shown]) -> torch.Tensor:
    """Logits [n, V] of transformers, which places everything anew."""
    images = [each for each in shown if each.kind == "image"]
    videos = [each for each in shown if each.kind == "video"]
    tokens = torch.tensor([list(ids)])
    more: dict[str, torch.Tensor] = {}
    for name, grids, found in (("pixel_values", "image", images), ("pixel_values_videos", "video", videos)):
        if found:
            more[name] = torch.from_numpy(np.concatenate([each.patches for each in found]))
            more[f"{grids}_grid_thw"] = torch.tensor([each.grid for each in found])
    if shown:
        more["mm_token_type_ids"] = (tokens == IMAGE).int() + 2 * (tokens == VIDEO).int()
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False, **more).logits[0]
    return logits


def reference_greedy(model: Any, ids: Sequence[int], shown: Sequence[Shown], length: int) -> list[int]:
    known = list(ids)
    for _ in range(length):
        logits = reference_logits(model, known, shown)[-1].index_fill(0, torch.tensor([*NEVER]), -torch.inf)
        known.append(int(logits.argmax()))
    return known[len(ids) :]
