"""``qwench doctor``: each finding has the command that mends it; what is in order is not mentioned."""

from __future__ import annotations

import dataclasses
import json

import pytest

from qwench.cli import doctor, main
from qwench.device import DeviceInfo, Measurement, TorchInfo
from qwench.ops.limits import Limits

SOUND = DeviceInfo(
    cpu="Example 9000",
    architecture="x86_64",
    threads=2,
    instruction_sets=("avx2",),
    memory_total=16 << 30,
    memory_available=8 << 30,
    huge_pages="madvise",
    nvidia_driver=False,
)
TORCH = TorchInfo("2.13.0+cpu", None, 2, ())
NANO = doctor.NanoCheck(("device cpu (no CUDA device)", "kernels torch (reference)"), None)


def report(machine: DeviceInfo = SOUND, torch: TorchInfo = TORCH, nano: doctor.NanoCheck = NANO) -> doctor.Report:
    limit = Measurement((1e10,), "bytes/s", "by hand")
    limits = Limits(limit, Measurement((5e9,), "bytes/s", "small pages"), {"int8 avx2": limit})
    return doctor.Report(machine, torch, limits, ("avx2", "scalar"), nano, tuple(doctor.diagnose(machine, torch, nano)))


@pytest.fixture(autouse=True)
def _no_thread_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_a_sound_machine_has_nothing_to_mend() -> None:
    text = "\n".join(doctor.render(report()))
    assert text.endswith("Nothing to mend.")
    assert "kernels torch (reference)" in text
    assert "10 GB/s" in text
    assert "5 GB/s (median 5; small pages)" in text
    assert "avx2, scalar" in text


@pytest.mark.parametrize(
    ("machine", "torch", "nano", "text", "mend"),
    [
        ({"huge_pages": "never"}, {}, None, "huge pages are off", "transparent_hugepage/enabled"),
        ({"nvidia_driver": True}, {}, None, "is a CPU build", "pip install --force-reinstall torch"),
        ({"nvidia_driver": True}, {"cuda": "13.0"}, None, "torch finds no device", "nvidia-smi"),
        ({}, {"threads": 1}, None, "torch uses 1 of 2 threads", "export OMP_NUM_THREADS=2"),
        ({"memory_available": 1 << 30}, {}, None, "only 1.0 GiB of memory are free", "ps "),
        ({}, {}, "config.json is missing.", "the embedded model does not run: config.json is missing.", "pip install"),
    ],
)
def test_a_finding_has_a_command(
    machine: dict[str, object], torch: dict[str, object], nano: str | None, text: str, mend: str
) -> None:
    check = NANO if nano is None else doctor.NanoCheck((), nano)
    made = report(dataclasses.replace(SOUND, **machine), dataclasses.replace(TORCH, **torch), check)  # type: ignore[arg-type]
    (finding,) = made.findings
    assert text in finding.text
    assert mend in finding.mend
    assert finding.broken == (nano is not None)
    assert finding.mend in "\n".join(doctor.render(made))


def test_this_machine_is_examined_and_nano_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = Measurement((1e10,), "bytes/s", "not measured in tests")
    limits = Limits(quick, None, {})
    monkeypatch.setattr("qwench.ops.limits.measure_limits", lambda device, threads, small_pages: limits)
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["nano"]["error"] is None
    assert document["nano"]["lines"]
    assert document["machine"]["threads"] >= 1
