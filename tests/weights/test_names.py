"""The table of names is one to one, for every parameter of every published shape."""

from __future__ import annotations

import pytest

from qwench.model.parameters import declare
from qwench.plan.shapes import SHAPES
from qwench.weights.names import PREFIXES, Place, place_of, prefix_of, stored_name, unused_reason


@pytest.mark.parametrize("prefix", PREFIXES)
def test_there_and_back(prefix: str) -> None:
    places = {Place(name) for shape in SHAPES for name in declare(shape.config)}
    places |= {Place("layers.7.moe.gate_up", 255, part) for part in ("gate", "up")}
    places.add(Place("layers.7.moe.down", 0, "down"))
    stored = {place: stored_name(place, prefix) for place in places}
    assert len(set(stored.values())) == len(places)
    for place, name in stored.items():
        assert place_of(name) == place
        assert unused_reason(name) is None
    if prefix:
        assert prefix_of(list(stored.values())) == prefix


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.00.input_layernorm.weight",
        "model.layers.-1.input_layernorm.weight",
        "model.layers.0.input_layernorm.weight.extra",
        "model.layers.0.mlp.experts.0.gate_up_proj.weight",
        "model.layers.0.mlp.experts.01.up_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.bias",
        "model.layers.\u0661.input_layernorm.weight",
        "other.norm.weight",
        "",
    ],
)
def test_what_is_not_a_name(name: str) -> None:
    assert place_of(name) is None


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("model.visual.blocks.0.norm1.weight", "vision"),
        ("visual.merger.norm.weight", "vision"),
        ("vision_tower.blocks.0.norm1.weight", "vision"),
        ("mtp.layers.0.input_layernorm.weight", "mtp"),
        ("model.mtp.norm.weight", "mtp"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", "rotary"),
    ],
)
def test_what_is_left_out_has_a_reason(name: str, word: str) -> None:
    assert word in (unused_reason(name) or "")
