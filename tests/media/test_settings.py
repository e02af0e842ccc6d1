"""What a checkpoint wants of pictures: read from its files, published where they are silent, refused where they lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from qwench.config import ModelConfig, VisionConfig
from qwench.errors import ConfigError
from qwench.gguf.file import open_gguf
from qwench.media.reader import MediaReader
from qwench.media.settings import Caps, VisionSettings
from qwench.text.gguf_text import gguf_vision
from tests.media.files import NANO


@pytest.fixture(scope="module")
def vision() -> VisionConfig:
    found = ModelConfig.from_folder(NANO).vision
    assert found is not None
    return found


def test_nano_says_what_it_wants(vision: VisionConfig) -> None:
    found = VisionSettings.from_folder(NANO, vision)
    assert (found.patch, found.temporal, found.merge, found.factor) == (16, 2, 2, 32)
    assert found.image_pixels == (8192, 12_288)
    assert found.video_pixels == (4096, 262_144)
    assert (found.fps, found.frames) == (2.0, (4, 768))


def test_bounds_of_memory_hold_for_pictures_and_for_videos_in_tokens() -> None:
    found = VisionSettings().within(1_000_000)
    assert found.image_pixels == (65_536, 1_000_000)
    assert found.video_pixels == (4_096, 2_000_000)
    assert VisionSettings().within(32 * 32).image_pixels == (1024, 1024)


@pytest.mark.parametrize(("caps", "most"), [(Caps(), 500_000), (Caps(max_pixels=2_000_000), 16_777_216)])
def test_what_the_operator_says_of_pixels_overrules_memory(caps: Caps, most: int) -> None:
    assert MediaReader(VisionSettings(), caps, most=500_000).settings.image_pixels[1] == most


def test_without_files_it_is_as_published(vision: VisionConfig, tmp_path: Path) -> None:
    found = VisionSettings.from_folder(tmp_path, vision)
    assert found == VisionSettings()
    assert found.image_pixels == (256 * 256, 4096 * 4096)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"patch_size": 14}, "patch_size is 14, but config.json says 16"),
        ({"merge_size": 0}, "merge_size is 0"),
        ({"size": {"shortest_edge": 9, "longest_edge": 8}}, r"size\.shortest_edge is 9, more than longest_edge"),
        ({"size": 5}, "size is 5"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is .* list of three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is .* three numbers but 0"),
    ],
)
def test_files_that_lie_are_refused(values: Any, sentence: str, vision: VisionConfig, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        VisionSettings.from_folder(tmp_path, vision)


def projector(path: Path, **triples: list[float]) -> Path:
    """An mmproj file that says nothing else."""
    writer = gguf.GGUFWriter(path, "clip")
    for name, triple in triples.items():
        writer.add_array(f"clip.vision.image_{name}", triple)
    writer.add_tensor("v.none", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_projector_says_how_colours_are_normalised(vision: VisionConfig, tmp_path: Path) -> None:
    told = open_gguf(projector(tmp_path / "a.gguf", mean=[0.25, 0.5, 0.75], std=[0.5, 0.25, 0.5]))
    found = gguf_vision(told, vision)
    assert (found.mean, found.std) == ((0.25, 0.5, 0.75), (0.5, 0.25, 0.5))
    assert gguf_vision(open_gguf(projector(tmp_path / "b.gguf")), vision) == VisionSettings()
    with pytest.raises(ConfigError, match="three numbers"):
        gguf_vision(open_gguf(projector(tmp_path / "c.gguf", std=[0.5, 0.0, 0.5])), vision)
