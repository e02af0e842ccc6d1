"""What `make bench-vision` is made of: projectors with random weights, the other side's program, and what is told."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from bench import vision
from bench.mtmd import Mtmd
from bench.projector import TYPES, write_projector
from qwench.config import VisionConfig
from qwench.model.vision import VisionTower
from qwench.ops.kernels import TorchKernels

SMALL = VisionConfig(
    depth=2, hidden_size=64, num_heads=4, intermediate_size=128, out_hidden_size=96, num_position_embeddings=36,
    patch_size=16, temporal_patch_size=2, spatial_merge_size=2, in_channels=3,
)  # fmt: skip
ECHO = """#!/bin/sh
while read width height frames pixels rows; do
  [ "$width" = 0 ] && { echo "no such size" >&2; exit 3; }
  echo "0.5 0.75 $((frames * 4)) 96"
done
"""


@pytest.fixture(scope="module")
def projectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("projectors")
    for kind in TYPES:
        write_projector(folder / f"{kind}.gguf", SMALL, kind)
    return {kind: folder / f"{kind}.gguf" for kind in TYPES}


def seen(projector: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    side = vision.OwnSide(vision.ours(SMALL, projector, 1), lambda: 0.0, common=True)
    with torch.inference_mode():
        assert side.look(vision.shown_of(shape)) == 0.0
    rows = side.rows()
    assert rows is not None
    return rows.float()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / one.norm())


def test_every_type_of_file_is_the_same_tower(projectors: dict[str, Path]) -> None:
    rows = {kind: seen(projector, (4, 64, 96)) for kind, projector in projectors.items()}
    assert rows["BF16"].shape == (2 * 2 * 3, 96)
    for kind in TYPES:
        assert apart(rows["F16"], rows[kind]) < 0.05
    assert isinstance(vision.tower(SMALL, projectors["Q8_0"], TorchKernels()), VisionTower)


def test_the_program_is_asked_line_by_line_and_its_last_words_are_told(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(ECHO)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    mtmd = Mtmd(program, tmp_path / "projector", 1, tmp_path / "log")
    assert [mtmd.look(tmp_path / "pixels", (2, 8, 8)).processors for _ in range(2)] == [0.75, 0.75]
    with pytest.raises(RuntimeError, match="ended with 3; its last words:\nno such size"):
        mtmd.look(tmp_path / "pixels", (1, 8, 0))


def test_ratios_are_of_the_same_turn() -> None:
    assert (
        vision.ratio({"qwench:BF16": [1.0, 2.0, 10.0], "mtmd:F16": [3.0, 4.0, 30.0]}, "mtmd:F16", "qwench:BF16") == 3.0
    )


@pytest.mark.skipif(not vision.MTMD.is_file(), reason="`make llama.cpp` and `make bench-vision` were not run here")
@pytest.mark.parametrize("shape", [(1, 64, 96), (4, 96, 64)])
def test_mtmd_sees_what_we_see(projectors: dict[str, Path], tmp_path: Path, shape: tuple[int, int, int]) -> None:
    side = vision.MtmdSide(Mtmd(vision.MTMD, projectors["F16"], 1, tmp_path / "log"), tmp_path, cpu_time=False)
    assert side.look(vision.shown_of(shape)) > 0
    rows = side.rows()
    assert rows is not None
    assert rows.isfinite().all()
    ours = seen(projectors["F16"], shape)
    assert apart(ours, rows.view(ours.shape)) < 0.03
