"""The machine's facts are read from recorded files; measurements are positive and carry their method."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwench.device import Measurement, available_memory, measure_arithmetic, measure_bandwidth, probe, probe_torch

CPUINFO = "processor\t: 0\nmodel name\t: Example 9000 @ 3 GHz\nflags\t\t: fpu sse2 avx2 fma avx512f avx512_vnni\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n"


def machine(root: Path, files: dict[str, str]) -> Path:
    recorded = {
        "proc/cpuinfo": CPUINFO,
        "proc/meminfo": MEMINFO,
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    for name, text in {**recorded, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_a_machine_is_read_from_its_files(tmp_path: Path) -> None:
    info = probe(machine(tmp_path, {}))
    assert info.cpu == "Example 9000 @ 3 GHz"
    assert info.instruction_sets == ("avx2", "fma", "avx512f", "avx512_vnni")
    assert (info.memory_total, info.memory_available) == (1000 * 1024, 600 * 1024)
    assert info.huge_pages == "madvise"
    assert not info.nvidia_driver


def test_an_arm_machine_names_its_features(tmp_path: Path) -> None:
    info = probe(machine(tmp_path, {"proc/cpuinfo": "Features\t: fp asimd asimddp i8mm bf16\n"}))
    assert info.instruction_sets == ("asimd", "asimddp", "i8mm", "bf16")


def test_a_container_grants_less_than_the_machine_has(tmp_path: Path) -> None:
    group = {
        "sys/fs/cgroup/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/memory.max": "512000\n",
        "sys/fs/cgroup/memory.current": "500000\n",
    }
    info = probe(machine(tmp_path, group))
    assert info.threads == 1
    assert (info.memory_total, info.memory_available) == (512000, 12000)


def test_a_container_without_limits_grants_all(tmp_path: Path) -> None:
    group = {"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"}
    info = probe(machine(tmp_path, group))
    assert info.threads == len(os.sched_getaffinity(0))
    assert info.memory_total == 1000 * 1024


def test_a_machine_without_these_files_is_unknown_but_not_an_error(tmp_path: Path) -> None:
    info = probe(tmp_path)
    assert info.instruction_sets == ()
    assert info.huge_pages == "unknown"
    assert info.memory_total >= info.memory_available > 0


def test_this_machine_has_threads_and_memory() -> None:
    info = probe()
    assert info.threads >= 1
    assert 0 < info.memory_available <= info.memory_total
    assert 0 < available_memory() <= info.memory_total


def test_torch_is_described() -> None:
    import torch

    info = probe_torch()
    assert info.version == str(torch.__version__)
    assert (info.cuda is None) == (torch.version.cuda is None)
    assert len(info.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_measurements_keep_their_samples_and_say_how() -> None:
    bandwidth = measure_bandwidth(runs=3, num_bytes=1 << 22)
    assert len(bandwidth.samples) == 3
    assert bandwidth.unit == "bytes/s"
    assert "4 MiB" in bandwidth.method
    arithmetic = measure_arithmetic(dtype="float32", runs=3, size=64)
    assert len(arithmetic.samples) == 3
    assert "64x64 matrix product in float32" in arithmetic.method
    for measured in (bandwidth, arithmetic):
        assert measured.best >= measured.median >= min(measured.samples) > 0


def test_the_limit_is_the_best_sample() -> None:
    measured = Measurement((3.0, 1.0, 2.0), "bytes/s", "by hand")
    assert (measured.best, measured.median) == (3.0, 2.0)


@pytest.mark.gpu
def test_a_gpu_is_measured_too() -> None:
    assert measure_bandwidth("cuda", runs=3).best > 50e9
    assert measure_arithmetic("cuda", runs=3).best > 1e12
