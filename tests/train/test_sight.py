"""Learning to see: resumable, begun with the language model's weights, at last held to its answers; it really reads."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

import qwench
from qwench.train.data.recall import copy
from qwench.train.encode import encode
from qwench.train.evaluate import engine_generator, run_suite
from qwench.train.ragged import pack
from qwench.train.recipe import SIGHT_PRESETS
from qwench.train.sight import TOWER, Trainer, run
from qwench.train.suites import suites

NANO = Path(qwench.__file__).parent / "assets" / "nano"
TINY = dataclasses.replace(
    SIGHT_PRESETS["smoke"], alone=2, together=2, keeping=1, pictures=4, tokens=64, warm_up=1, half=False,
    stages=((0.5, {"seen number": 1.0}), (1.0, {"seen number": 1.0, "copy": 1.0})),
)  # fmt: skip


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    run(TINY, NANO, tmp_path / "whole")
    run(TINY, NANO, tmp_path / "parts", stop=1)
    run(TINY, NANO, tmp_path / "parts", stop=3, resume=True)
    run(TINY, NANO, tmp_path / "parts", resume=True)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_alone_the_tower_changes_and_the_language_model_does_not(tmp_path: Path) -> None:
    run(TINY, NANO, tmp_path, stop=1)
    first = load_file(tmp_path / "model.safetensors")
    run(TINY, NANO, tmp_path, stop=2, resume=True)
    second, nano = load_file(tmp_path / "model.safetensors"), load_file(NANO / "model.safetensors")
    for name, value in second.items():
        assert name.startswith(TOWER) or torch.equal(value, nano[name])
    assert any(not torch.equal(value, first[name]) for name, value in second.items())


def test_what_was_known_before_is_the_teacher(tmp_path: Path) -> None:
    """A language model that went astray finds back to its own answers, on samples it was not given."""
    recipe = dataclasses.replace(TINY, alone=0, together=0, keeping=20, tokens=256, stages=((1.0, {"copy": 1.0}),))
    trainer, rng = Trainer(recipe, NANO, tmp_path), Random(1)
    batch = pack([encode(trainer.tokenizer, copy(rng, True)) for _ in range(8)], recipe.chunk)
    assert float(trainer.kept(batch).detach()) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(1)
    for value in trainer.optimizers["language"].parameters.values():
        value.data += 0.3 * value.std() * torch.randn_like(value) if value.ndim > 1 else 0
    astray = float(trainer.kept(batch).detach())
    while trainer.step < recipe.steps:
        trainer.advance()
    assert float(trainer.kept(batch).detach()) < 0.5 * astray


def test_each_part_has_a_rise_and_a_fall() -> None:
    recipe = SIGHT_PRESETS["cpu"]
    for turn in (recipe.alone, recipe.alone + recipe.together):
        assert recipe.rate(turn - 1) == pytest.approx(0.02, abs=0.01)
        assert recipe.rate(turn) == pytest.approx(1 / recipe.warm_up)
        assert recipe.rate(turn + recipe.warm_up) == 1.0
    assert recipe.rate(recipe.steps - 1) == pytest.approx(0.02, abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_smoke_preset_learns_to_read(tmp_path: Path) -> None:
    """Some minutes of one core; the numbers asked here were never shown."""
    command = [sys.executable, "-m", "qwench.train.sight", "--preset", "smoke", "--start", str(NANO)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    subprocess.run([*command, "--out", str(tmp_path)], check=True, env=environment, timeout=590)
    from tokenizers import Tokenizer

    suite = next(suite for suite in suites() if suite.name.startswith("see: number"))
    result = run_suite(suite, Tokenizer.from_file(str(tmp_path / "tokenizer.json")), engine_generator(tmp_path), 100)
    assert result.exact >= 20, f"{result.exact} of 100 numbers are read"
