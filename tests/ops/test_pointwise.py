"""Norms, rotary positions and expert feed-forwards against their formulas in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

from qwench.config import RopeConfig, YarnConfig
from qwench.ops import rotary
from qwench.ops.arrays import to_torch
from qwench.ops.linear import Dense, expert_mlp, route
from qwench.ops.norm import gated_rms_norm, rms_norm
from tests.tolerances import tolerance


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("zero_centred", [True, False])
def test_rms_norm(zero_centred: bool) -> None:
    x, weight = normal(5, 3, 32), normal(32, seed=1)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (weight.double() + zero_centred)
    assert (rms_norm(x, weight, 1e-6, zero_centred=zero_centred) - expected).abs().max() < tolerance("norm")
    assert rms_norm(x.bfloat16(), weight, 1e-6, zero_centred=zero_centred).dtype == torch.bfloat16


def test_gated_norm_takes_the_gate_after_the_weight() -> None:
    x, gate, weight = normal(5, 3, 32), normal(5, 3, 32, seed=2), normal(32, seed=1)
    wide, opened = x.double(), gate.double()
    normed = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = weight.double() * normed * opened * opened.sigmoid()
    assert (gated_rms_norm(x, gate, weight, 1e-6) - expected).abs().max() < tolerance("norm")


@pytest.mark.parametrize("section", [(11, 11, 10), (3, 3, 2), (2, 1, 1)])
def test_interleaved_mrope_equals_transformers(section: tuple[int, int, int]) -> None:
    rotary_dim = 2 * sum(section)
    config = Qwen3_5TextConfig(
        head_dim=4 * rotary_dim,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": list(section),
        },
    )
    positions = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(3))
    reference = Qwen3_5TextRotaryEmbedding(config)
    wanted_cos, wanted_sin = reference(torch.zeros(1, 20, 8), positions[:, None])
    rope = RopeConfig(1e7, rotary_dim, section, None)
    cos, sin = map(to_torch, rotary.cos_sin(positions.numpy(), rotary.frequencies(rope), rotary.axes(rope), 1.0))
    assert (torch.cat((cos, cos), -1) - wanted_cos[0]).abs().max() < tolerance("rotary")
    assert (torch.cat((sin, sin), -1) - wanted_sin[0]).abs().max() < tolerance("rotary")


def test_yarn_keeps_fast_frequencies_and_divides_slow_ones() -> None:
    """The bounds and blend published for Qwen3.5 at factor 4: 1 up to 14, 1/4 from 22, linear between."""
    yarn = YarnConfig(4.0, 262144, 32.0, 1.0, 0.1 * math.log(4) + 1, True)
    plain = rotary.frequencies(RopeConfig(1e7, 64, (11, 11, 10), None))
    ratio = to_torch(rotary.frequencies(RopeConfig(1e7, 64, (11, 11, 10), yarn)) / plain)
    ramp = ((torch.arange(32) - 14) / 8).clamp(0, 1)
    assert torch.allclose(ratio, 1 - ramp * 0.75, atol=1e-6)
    assert ratio[15].item() == pytest.approx(0.90625)


def test_rotation_turns_pairs_half_the_rotary_width_apart_and_leaves_the_rest() -> None:
    x = normal(2, 1, 16)
    angle = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    turned = rotary.rotate(x, angle.cos(), angle.sin())
    for token in range(2):
        for j in range(2):
            pair = complex(x[token, 0, j], x[token, 0, j + 2])
            a = float(angle[token, j])
            expected = pair * complex(math.cos(a), math.sin(a))
            assert turned[token, 0, j].item() == pytest.approx(expected.real, abs=1e-6)
            assert turned[token, 0, j + 2].item() == pytest.approx(expected.imag, abs=1e-6)
    assert torch.equal(turned[..., 4:], x[..., 4:])


@pytest.mark.parametrize("normalise", [True, False])
def test_experts_equal_the_sum_written_out(normalise: bool) -> None:
    tokens, hidden, width, experts, top = 7, 12, 5, 6, 3
    x, logits = normal(tokens, hidden), normal(tokens, experts, seed=1)
    gate_up, down = normal(experts, 2 * width, hidden, seed=2) * 0.3, normal(experts, hidden, width, seed=3) * 0.3
    weights, chosen = route(logits, top, normalise=normalise)
    expected = torch.zeros(tokens, hidden, dtype=torch.float64)
    for t in range(tokens):
        probabilities = torch.softmax(logits[t].double(), 0)
        best = probabilities.argsort(descending=True)[:top]
        total = probabilities[best].sum() if normalise else 1.0
        for expert in best.tolist():
            both = gate_up[expert].double() @ x[t].double()
            gate, up = both[:width], both[width:]
            expected[t] += probabilities[expert] / total * (down[expert].double() @ (gate * gate.sigmoid() * up))
    found = expert_mlp(x, weights, chosen, Dense(gate_up), Dense(down))
    assert (found - expected).abs().max() < tolerance("experts")
