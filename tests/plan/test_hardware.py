"""Machines: every cell has a source and a date, and a mistake in a user's file is told with file, line and key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwench.device import DeviceInfo
from qwench.errors import UsageError
from qwench.plan.cost import load_prices
from qwench.plan.hardware import CELLS, find_machine, load_machines
from qwench.plan.here import Calibration, Reached, ask_gpus, machine_key, read_calibration, this_machine
from qwench.plan.span import Span
from qwench.plan.speed import efficiency

INFO = DeviceInfo("Some CPU", "x86_64", 4, (), 64 * 10**9, 50 * 10**9, "madvise", nvidia_driver=False)
KEPT = Calibration("Some CPU, 4 threads", "2026-11-22", 3e10, 4e12, "int8 amx", (0.7, 0.8), (0.05, 0.06))
GOOD = """
[sources]
shop = "shop.example"

[[machine]]
name = "box"
title = "A box"
kind = "gpu"
memory_gb = { value = 48, source = "shop", date = "2026-11" }
"""


def test_every_figure_has_a_source_and_a_date() -> None:
    machines = load_machines()
    assert len(machines) > 20
    for machine in machines.values():
        assert set(machine.cells) <= set(CELLS)
        for name, cell in machine.cells.items():
            assert len(cell.source) > 4, (machine.name, name)
            assert cell.date.startswith("20"), (machine.name, name)
            assert cell.value.high > 0


def test_eight_boards_have_eight_times_the_memory_and_one_host() -> None:
    machines = load_machines()
    one, eight = machines["h200"], machines["8x-h200"]
    assert eight["memory_gb"] == Span.of(8 * 141)
    assert one["rent_usd_hour"] is not None
    assert eight["rent_usd_hour"] == one["rent_usd_hour"] * 8
    assert machines["epyc-9005-768-rtx-pro-6000"].host_bytes == 768e9


def test_prices_have_sources_and_the_users_file_comes_first(tmp_path: Path) -> None:
    assert all(price.source and price.date for price in load_prices())
    own = tmp_path / "own.toml"
    own.write_text(
        '[[price]]\nmodel = "qwen3.5:4b"\noffer = "mine"\ninput = 0.1\noutput = [0.2, 0.3]\n'
        'source = "bill"\ndate = "2026-11"\n',
        encoding="utf-8",
    )
    first = load_prices(own)[0]
    assert (first.offer, first.output) == ("mine", Span(0.2, 0.3))
    own.write_text('[[price]]\nmodel = "x"\noffer = "y"\ninput = -1\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"own\.toml.*: price\.output is missing"):
        load_prices(own)


def test_a_machine_of_the_user_is_there_beside_the_others(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(GOOD + '\n[[machine]]\nname = "two"\ntitle = "Two"\nof = "box"\ncount = 2\n', encoding="utf-8")
    machines = load_machines(own)
    assert machines["two"]["memory_gb"] == Span.of(96)
    assert machines["box"].cells["memory_gb"].source == "shop.example"
    assert find_machine("A BOX", machines).name == "box"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("memory_gb", "memory_bg"), r"line 9: machine\.memory_bg is not known; did you mean memory_gb\?"),
        (GOOD.replace("48", '"much"'), r"line 9: machine\.memory_gb has the value 'much'; give a number above 0"),
        (GOOD.replace("48", "[48, 24]"), r"line 9: machine\.memory_gb has the value \[48, 24\]"),
        (GOOD.replace(', source = "shop"', ""), r"line 9: machine\.memory_gb must be \{ value"),
        (GOOD.replace('"gpu"', '"toaster"'), r"line 8: machine\.kind is 'toaster'; use gpu, unified, cpu, cloud"),
        (GOOD.replace('title = "A box"', ""), r"machine\.title is missing"),
        (GOOD + 'count = 0\n', r"line 10: machine\.count is 0; give a whole number"),
        (GOOD + 'of = "rtx-490"\n', r"line 10: machine\.of names 'rtx-490', which no machine above has; the nearest"),
        ('machine = 3', r"line 1: machine must be written as \[\[machine\]\]"),
        ('[[machine]\n', r"own\.toml, line 1: "),
        ('[[machine]]\nname = "a', r"own\.toml, "),
        ('[[machines]]\n', r"line 1: machines is not known; did you mean machine\?"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_file_line_and_key(text: str, sentence: str, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text, encoding="utf-8")
    with pytest.raises(
        UsageError, match=rf"own\.toml, {sentence}" if sentence.startswith("line") else sentence
    ) as told:
        load_machines(own)
    assert "\n" not in told.value.message


def test_a_file_that_is_not_there_or_not_text_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: no such file"):
        load_machines(tmp_path / "none.toml")
    (tmp_path / "raw.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"raw\.toml is not UTF-8 text"):
        load_machines(tmp_path / "raw.toml")


def test_this_machine_has_a_speed_only_once_it_was_measured() -> None:
    bare, known = this_machine(INFO, None), this_machine(INFO, KEPT)
    assert bare["bandwidth_gbs"] is None
    assert known["bandwidth_gbs"] == Span.of(30)
    assert bare.usable_bytes == pytest.approx(50e9)


def test_a_gpu_found_here_takes_its_figures_from_the_table() -> None:
    machine = this_machine(INFO, None, "NVIDIA GeForce RTX 4090, 24564\nNVIDIA GeForce RTX 4090, 24564\n")
    assert (machine.kind, machine.count) == ("gpu", 2)
    assert machine["bandwidth_gbs"] == Span.of(2016)
    assert machine["memory_gb"] == Span.of(2 * 24564 * 2**20 / 1e9)
    assert this_machine(INFO, None, "Some GPU, 1000\n")["bandwidth_gbs"] is None
    assert ask_gpus(INFO) == ""


def test_a_calibration_is_kept_for_the_machine_it_was_made_on(tmp_path: Path) -> None:
    path = tmp_path / "made" / "calibration.json"
    KEPT.save(path)
    assert machine_key(INFO) == KEPT.machine
    assert read_calibration(path, INFO) == KEPT
    assert read_calibration(path, replace(INFO, threads=8)) is None
    for damaged in ("{", "[]", '{"decode": []}', "null"):
        path.write_text(damaged, encoding="utf-8")
        assert read_calibration(path, INFO) is None
    assert read_calibration(tmp_path / "none.json", INFO) is None


def test_what_was_measured_with_weights_like_a_models_counts_for_it(tmp_path: Path) -> None:
    wide, plain = Reached(8.5, (0.9,), (0.05,)), Reached(16.0, (0.95,), (0.01,))
    kept = replace(KEPT, bits=5.5, more=(wide, plain))
    assert kept.reached(8.4).decode == (0.9,)
    assert kept.reached(3.0) == replace(kept.reached(5.0), bits=3.0)
    assert kept.reached(5.0).decode == KEPT.decode
    assert kept.reached(6.7) == Reached(6.7, (*KEPT.decode, 0.9), (*KEPT.prefill, 0.05)), "between two: both"
    assert kept.reached(12.0).prefill == (0.05, 0.01)
    assert kept.reached(32.0).prefill == (0.01,)
    assert KEPT.reached(16.0).decode == KEPT.decode, "who knows one precision takes it for all"
    path = tmp_path / "calibration.json"
    kept.save(path)
    assert read_calibration(path, INFO) == kept
    path.write_text(path.read_text(encoding="utf-8").replace("0.95", "-0.95"), encoding="utf-8")
    assert read_calibration(path, INFO) is None


def test_a_calibration_of_the_first_version_is_used_with_the_overlap_that_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    replace(KEPT, overlap=(0.3, 0.4)).save(path)
    told = json.loads(path.read_text(encoding="utf-8"))
    old = {key: value for key, value in told.items() if key not in ("overlap", "version")}
    path.write_text(json.dumps(old), encoding="utf-8")
    kept = read_calibration(path, INFO)
    assert kept == replace(KEPT, version=1)
    shares, stated = efficiency("cpu", False, kept), efficiency("cpu", False)
    assert shares.overlap == stated.overlap
    assert 0 < stated.overlap.low < stated.overlap.high < 1
    assert shares.sources[0] == "measured here on 2026-11-22"
    assert shares.sources[1].startswith("overlap: ")


@pytest.mark.parametrize(
    "wrong", [{"version": 3}, {"overlap": [0.4, 1.5]}, {"overlap": [-0.1]}, {"bandwidth": float("inf")}, {"news": 1}]
)
def test_a_calibration_of_a_version_to_come_or_of_impossible_shares_is_none(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "calibration.json"
    KEPT.save(path)
    told = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**told, **wrong}), encoding="utf-8")
    assert read_calibration(path, INFO) is None


def test_overlap_is_the_middle_half_of_the_rounds_and_none_to_all_where_nobody_measured() -> None:
    kept = replace(KEPT, overlap=(0.9, 0.4, 0.0, 0.5, 0.3))
    assert efficiency("cpu", False, kept).overlap == Span(0.3, 0.5)
    assert efficiency("cpu", False, kept).sources == ("measured here on 2026-11-22",)
    assert efficiency("gpu", False).overlap == Span(0.0, 1.0)


def test_what_was_measured_here_counts_before_the_table() -> None:
    own, table = efficiency("cpu", False, KEPT), efficiency("cpu", False)
    assert own.decode is not None
    assert own.decode.low == pytest.approx(0.7 * 0.85)
    assert own.sources[0] == "measured here on 2026-11-22"
    assert table.decode == Span(0.76, 0.81)


def test_a_kind_without_a_row_of_its_own_takes_the_other_models() -> None:
    assert efficiency("unified", False).decode == efficiency("unified", True).decode == Span(0.28, 0.64)
    assert efficiency("unified", True).prefill is None
    assert efficiency("cloud", True) == efficiency("gpu", True)
