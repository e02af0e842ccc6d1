"""The arithmetic of shapes reproduces the published figures to the last digit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qwench.family import PUBLISHED
from qwench.footprint import CacheShape
from qwench.plan import shapes
from qwench.plan.shapes import SHAPES, KiB, MiB, Shape, lookup


@dataclass(frozen=True)
class Published:
    """One column of the family's published and cross-checked figures."""

    text: int
    vision: int
    mtp: int
    total: str  # in billions, as printed
    tensors: tuple[int, int, int]
    bf16_gb: str
    active: str  # in billions
    kv: int
    state_mib: int
    conv_kib: int


QWEN35 = {
    "0.8b": Published(752_393_024, 100_592_896, 20_452_864, "0.873", (320, 153, 15), "1.75", "0.752", 12_288, 18, 648),
    "2b": Published(1_881_825_088, 331_416_576, 60_828_160, "2.274", (320, 297, 15), "4.55", "1.882", 12_288, 18, 648),
    "4b": Published(
        4_205_751_296, 333_514_240, 120_599_552, "4.660", (426, 297, 15), "9.32", "4.206", 32_768, 48, 1152
    ),
    "9b": Published(
        8_953_803_264, 456_010_480, 243_290_624, "9.653", (427, 333, 15), "19.31", "7.937", 32_768, 48, 1152
    ),
    "27b": Published(
        26_895_998_464, 460_730_096, 424_699_392, "27.781427952", (851, 333, 15), "55.56", "25.62", 65_536, 144, 2880
    ),
    "35b-a3b": Published(
        34_660_610_688, 446_571_248, 844_640_768, "35.952", (693, 333, 19), "71.9", "2.946", 20_480, 60, 1440
    ),
    "122b-a10b": Published(
        122_111_526_912, 451_290_864, 2_523_679_232, "125.086", (831, 333, 19), "250.2", "9.008", 24_576, 144, 2592
    ),
    "397b-a17b": Published(
        396_346_350_336, 456_010_480, 6_595_568_128, "403.398", (1038, 333, 19), "806.8", "16.33", 30_720, 180, 3240
    ),
}
# Totals as the Hub counts them (a tied head once), KV bytes per token in BF16.
QWEN3 = {
    "0.6b": (596_049_920, 114_688),
    "1.7b": (1_720_574_976, 114_688),
    "4b": (4_022_468_096, 147_456),
    "8b": (8_190_735_360, 147_456),
    "14b": (14_768_307_200, 163_840),
    "32b": (32_762_123_264, 262_144),
    "30b-a3b": (30_532_122_624, 98_304),
    "235b-a22b": (235_093_634_560, 192_512),
}


def printed(number: float, like: str) -> str:
    """``number`` with as many decimals as ``like`` has."""
    return f"{number:.{len(like.partition('.')[2])}f}"


def shape(name: str) -> Shape:
    found = lookup(name)
    assert found is not None
    return found


@pytest.mark.parametrize("size", QWEN35)
def test_qwen35_figures(size: str) -> None:
    config, figures = shape(f"qwen3.5:{size}").config, QWEN35[size]
    assert shapes.text_parameters(config) == figures.text
    assert shapes.vision_parameters(config) == figures.vision
    assert shapes.mtp_parameters(config) == figures.mtp
    total = shapes.total_parameters(config)
    assert total == figures.text + figures.vision + figures.mtp
    assert printed(total / 1e9, figures.total) == figures.total
    parts = (shapes.text_tensors, shapes.vision_tensors, shapes.mtp_tensors)
    assert tuple(len(list(tensors(config))) for tensors in parts) == figures.tensors
    assert printed(shapes.bytes_at(total, 16) / 1e9, figures.bf16_gb) == figures.bf16_gb
    assert printed(shapes.active_parameters(config) / 1e9, figures.active) == figures.active
    kept = CacheShape.of(config, "bfloat16")
    assert (kept.token_bytes, kept.recurrent_bytes) == (figures.kv, figures.state_mib * MiB)
    assert kept.conv_bytes == figures.conv_kib * KiB
    assert config.max_positions == 262_144


@pytest.mark.parametrize("size", QWEN3)
def test_qwen3_figures(size: str) -> None:
    config = shape(f"qwen3:{size}").config
    kept = CacheShape.of(config, "bfloat16")
    assert (shapes.total_parameters(config), kept.token_bytes) == QWEN3[size]
    assert shapes.vision_parameters(config) == shapes.mtp_parameters(config) == 0
    assert kept.sequence_bytes == 0


@pytest.mark.parametrize(("name", "billions"), [("qwen3:30b-a3b", 3), ("qwen3:235b-a22b", 22), ("qwen3:8b", 8)])
def test_qwen3_active_parameters_match_the_name(name: str, billions: int) -> None:
    assert round(shapes.active_parameters(shape(name).config) / 1e9) == billions


def test_every_name_is_found_and_only_names() -> None:
    assert {each.short_name: each.hub_id for each in SHAPES} == dict(PUBLISHED)
    for each in SHAPES:
        assert lookup(each.short_name) is lookup(each.hub_id.upper()) is lookup(each.title) is each
    assert lookup("qwen3.5:5b") is None
    assert lookup("") is None


@pytest.mark.parametrize(("bits", "size"), [(16, 20), (8, 10), (4, 5), (3, 4), (2, 3)])
def test_bytes_are_rounded_up(bits: int, size: int) -> None:
    assert shapes.bytes_at(10, bits) == size
