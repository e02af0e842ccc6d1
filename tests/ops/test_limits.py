"""The machine's limits: every loop counts what it does, and memory is read to its end."""

from __future__ import annotations

import ctypes

import pytest

from qwench.device import Measurement
from qwench.ops import limits
from qwench.ops.native import instruction_sets, load_library


def require_library() -> ctypes.CDLL:
    try:
        return load_library()
    except OSError as error:
        pytest.skip(f"no native library: {error}")


def test_a_loop_counts_its_operations_for_every_thread_and_round() -> None:
    library = require_library()
    context = library.qw_open(2, instruction_sets()[0].encode())
    names = library.qw_limits().decode().split("\n")
    assert any(name.startswith("fp32") for name in names)
    for name in names:
        once = library.qw_limit_run(context, name.encode(), 1, 10)
        assert once > 0
        assert library.qw_limit_run(context, name.encode(), 2, 20) == 4 * once
    assert library.qw_limit_run(context, b"int3 abacus", 1, 10) == 0
    library.qw_close(context)


@pytest.mark.parametrize("size", [0, 8, 4096, (1 << 20) + 512, (5 << 20) + 1024])
def test_memory_is_read_to_its_end(size: int) -> None:
    library = require_library()
    context = library.qw_open(2, instruction_sets()[0].encode())
    memory = (ctypes.c_uint8 * max(1, size))()
    assert library.qw_limit_read(context, 2, memory, size) == 0
    if size >= 512:
        memory[size - 1] = 1
        assert library.qw_limit_read(context, 2, memory, size) != 0
        assert library.qw_limit_read(context, 1, memory, size) != 0
    library.qw_close(context)


def test_all_limits_are_measured() -> None:
    require_library()
    measured = limits.measure_limits("cpu", 1, small_pages=True, num_bytes=1 << 22)
    assert measured.small_pages is not None
    assert len(measured.reads.samples) == len(measured.small_pages.samples) == limits.RUNS
    assert all(each.best > 1e8 for each in measured.arithmetic.values())
    found = measured.peak("fp32")
    assert found is not None
    assert found[0].startswith("fp32")
    assert measured.peak("int1") is None


def test_without_the_library_torch_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> ctypes.CDLL:
        raise OSError("it was not built")

    fake = Measurement((1.0,), "x/s", "by hand")
    monkeypatch.setattr(limits, "load_library", missing)
    monkeypatch.setattr(limits, "measure_bandwidth", lambda _device: fake)
    monkeypatch.setattr(limits, "measure_arithmetic", lambda _device, _dtype: fake)
    measured = limits.measure_limits("cpu", 1)
    assert measured.reads == fake
    assert set(measured.arithmetic) == {"bf16", "fp32"}
