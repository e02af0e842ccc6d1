"""The tower's training forward, and the language model's with pictures, equal transformers' own; gradients included."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from qwench.media.patches import Media
from qwench.media.settings import VisionSettings
from qwench.train.data import seeing
from qwench.train.encode import Row, look
from qwench.train.forward import Forward
from qwench.train.model import Sizes, build, configuration
from qwench.train.ragged import gather, pack
from qwench.train.tokenizer import ADDED
from qwench.train.tower import Tower


@pytest.fixture(scope="module")
def model() -> Any:
    sizes = Sizes(vocabulary=96, hidden=64, key_heads=1, value_heads=2, expert_width=16, tower=32, tower_layers=2)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens(list(ADDED))
    config = configuration(sizes, tokenizer)
    built = build(config, seed=3)
    visual = built.model.visual
    for value in visual.parameters():
        value.data += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
    for layer in built.model.language_model.layers:
        layer.mlp.gate.weight.data *= 30  # far from ties, where a last bit decides which expert is chosen
    return built


def media_of(pixels: Any) -> Media:
    return Media("image", pixels[None], VisionSettings(), (0, 0))


def test_rows_and_gradients_equal_transformers(model: Any) -> None:
    rng, visual = Random(1), model.model.visual
    shown = [look(seeing.scene(rng, {"number": 1.0, "shapes": 1.0})[1]) for _ in range(12)]
    groups = list(gather((0, each) for each in shown))
    assert len(groups) > 1
    parameters = list(visual.parameters())
    for pictures in groups:
        states, rows = Tower(visual)(pictures.pixels)
        media = [media_of(pixels.numpy()) for pixels in pictures.pixels]
        patches = torch.cat([torch.from_numpy(each.patches) for each in media])
        found = visual(patches, grid_thw=torch.tensor([each.grid for each in media]))
        torch.testing.assert_close(states.flatten(0, 1), found.last_hidden_state, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(rows.flatten(0, 1), found.pooler_output, atol=1e-4, rtol=1e-4)
        got = torch.autograd.grad(rows.square().sum(), parameters)
        wanted = torch.autograd.grad(found.pooler_output.square().sum(), parameters)
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=2e-2, rtol=1e-3)


def test_hidden_states_with_pictures_equal_transformers(model: Any) -> None:
    rng, pad = Random(2), model.config.image_token_id
    rows = []
    for before, after in ((3, 5), (1, 9), (0, 30)):
        shown = look(seeing.scene(rng, {"word": 1.0})[1], before)
        count = len(shown.caption)
        ids = [rng.randrange(60) for _ in range(before)] + [pad] * count + [rng.randrange(60) for _ in range(after)]
        rows.append(Row(ids, [True] * len(ids), ids, (shown,)))
    ids = [rng.randrange(60) for _ in range(20)]
    rows.append(Row(ids, [True] * 20, ids))
    batch = pack(rows, 32)
    with torch.no_grad():
        seen = [Tower(model.model.visual)(pictures.pixels)[1] for pictures in batch.pictures]
        states, _ = Forward(model).hidden_states(batch, seen)
        wanted = []
        for row in sorted(rows, key=lambda row: -len(row.ids)):
            media = [media_of(each.pixels) for each in row.shown]
            more: dict[str, Any] = {}
            if media:
                more["pixel_values"] = torch.cat([torch.from_numpy(each.patches) for each in media])
                more["image_grid_thw"] = torch.tensor([each.grid for each in media])
                more["mm_token_type_ids"] = torch.tensor([[int(token == pad) for token in row.ids]])
            wanted.append(model.model(input_ids=torch.tensor([row.ids]), **more).last_hidden_state[0])
    torch.testing.assert_close(states, torch.cat(wanted), atol=2e-4, rtol=1e-3)
