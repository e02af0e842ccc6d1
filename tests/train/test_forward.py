"""The training forward equals transformers' own, in float32, for hidden states, loss and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from qwench.train.encode import Row
from qwench.train.forward import Forward, route
from qwench.train.model import Sizes, build, configuration
from qwench.train.ragged import pack
from qwench.train.tokenizer import ADDED

LENGTHS = (40, 3, 75, 17, 32)


@pytest.fixture(scope="module")
def model() -> Any:
    sizes = Sizes(vocabulary=96, hidden=64, key_heads=1, value_heads=2, expert_width=16)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens(list(ADDED))
    built = build(configuration(sizes, tokenizer), seed=3)
    for layer in built.model.language_model.layers:
        layer.mlp.gate.weight.data *= 30  # far from ties, where a last bit decides which expert is chosen
    return built


def rows() -> list[Row]:
    random = torch.Generator().manual_seed(1)
    return [
        Row(ids := torch.randint(0, 96, (n,), generator=random).tolist(), [index % 3 > 0 for index in range(n)], ids)
        for n in LENGTHS
    ]


def test_hidden_states_equal_transformers(model: Any) -> None:
    ordered = sorted(rows(), key=lambda row: -len(row.ids))
    with torch.no_grad():
        states, _ = Forward(model).hidden_states(pack(rows(), 32))
        wanted = [model.model.language_model(input_ids=torch.tensor([row.ids])).last_hidden_state[0] for row in ordered]
    torch.testing.assert_close(states, torch.cat(wanted), atol=1e-4, rtol=1e-4)


def test_loss_and_gradients_equal_transformers(model: Any) -> None:
    loss, _ = Forward(model).losses(pack(rows(), 32))
    names = [name for name, _ in model.model.language_model.named_parameters()]
    parameters = [value for _, value in model.model.language_model.named_parameters()]
    got = torch.autograd.grad(loss, parameters)
    logits, targets = [], []
    for row in rows():
        out = model(input_ids=torch.tensor([row.ids])).logits[0]
        learnt = [index for index in range(1, len(row.ids)) if row.learn[index]]
        logits.append(out[[index - 1 for index in learnt]])
        targets += [row.ids[index] for index in learnt]
    reference = torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor(targets))
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    wanted = torch.autograd.grad(reference, parameters)
    for name, one, other in zip(names, got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3, msg=name)


def test_an_even_router_has_the_balance_loss_of_its_number_of_chosen_experts() -> None:
    weights, balance = route(torch.zeros(7, 8), 2)
    assert balance.item() == pytest.approx(2.0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    assert (weights > 0).sum(-1).tolist() == [2] * 7
