"""The training command: resumable, independent of the number of processes, and the smoke preset really learns."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwench.train.evaluate import Prompt, transformers_generator, wilson
from qwench.train.nano import run
from qwench.train.optimizer import Optimizer, orthogonal
from qwench.train.recipe import PRESETS

TINY = dataclasses.replace(
    PRESETS["smoke"],
    steps=4,
    tokens=(96,),
    hidden=64,
    layers=4,
    vocabulary=384,
    corpus=300,
    chunk=16,
    warm_up=2,
    half=False,
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    for name in ("whole", "half"):
        (tmp_path / name).mkdir()
    run(TINY, tmp_path / "whole")
    run(TINY, tmp_path / "half", stop=2)
    run(TINY, tmp_path / "half", resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "half")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_processes_give_the_same_bits_as_one(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from qwench.train.nano import launch\n"
        "from tests.train.test_nano import TINY\n"
        "if __name__ == '__main__': launch(TINY, Path(sys.argv[1]), int(sys.argv[2]), False)"
    )
    (tmp_path / "start.py").write_text(script)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path.cwd()), *sys.path]))
    for processes in ("1", "2"):
        command = [sys.executable, str(tmp_path / "start.py"), str(tmp_path / processes), processes]
        subprocess.run(command, check=True, env=environment, timeout=150)
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_rate_rises_stays_and_falls() -> None:
    recipe = PRESETS["cpu"]
    assert recipe.rate(0) == pytest.approx(1 / recipe.warm_up)
    assert recipe.rate(recipe.steps // 2) == 1.0
    assert recipe.rate(recipe.steps - 1) == pytest.approx(0.02, abs=0.01)
    assert [recipe.budget(step) for step in (0, recipe.steps - 1)] == [recipe.tokens[0], recipe.tokens[-1]]


def test_newton_schulz_evens_out_singular_values() -> None:
    out = orthogonal(torch.randn(3, 20, 50))
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_matrices_and_the_rest_are_told_apart() -> None:
    names = {
        "layers.0.self_attn.q_proj.weight": (8, 4),
        "layers.0.mlp.experts.down_proj": (2, 4, 3),
        "embed_tokens.weight": (9, 4),
    }
    names |= {"layers.0.mlp.gate.weight": (2, 4), "layers.0.linear_attn.A_log": (4,)}
    optimizer = Optimizer({name: torch.zeros(shape) for name, shape in names.items()})
    assert optimizer.matrices == list(names)[:2]


def test_wilson_interval() -> None:
    low, high = wilson(485, 500)
    assert (round(low, 1), round(high, 1)) == (95.1, 98.2)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_smoke_preset_learns_to_add(tmp_path: Path) -> None:
    """Two minutes on two free cores; the sums asked here were never trained."""
    from random import Random

    from tokenizers import Tokenizer

    from qwench.train.data import arithmetic
    from qwench.train.encode import prompt_text

    command = [sys.executable, "-m", "qwench.train.nano", "--preset", "smoke", "--out", str(tmp_path)]
    subprocess.run(command, check=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)), timeout=390)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rng = Random(1)
    pairs = [arithmetic.draw(rng, (2, 2), True, "+") for _ in range(40)]
    problems = [arithmetic.problem(rng, "sum", "+", pair, True) for pair in pairs]
    prompts = [Prompt(tokenizer.encode(prompt_text(one, 1), add_special_tokens=False).ids) for one in problems]
    written = transformers_generator(tmp_path)(prompts, 60)
    texts = [tokenizer.decode(ids) for ids, _ in written]
    right = sum(
        text.endswith(f"</think>\n\n{one.messages[-1]['content']}") for one, text in zip(problems, texts, strict=True)
    )
    assert right >= 32, f"{right} of 40 sums are right"
