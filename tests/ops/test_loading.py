"""Loading from files: what the native library reads and packs by itself is what the readers and stores make in pieces.

Packed bytes are compared, which every instruction set lays out alike.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qwench.ops import loading
from qwench.ops.arrays import dtype_of
from qwench.ops.loading import BITS, ELEMENTS, GGUF, Arena, Loading, MatrixInFile, RowsInFile, Unloadable, packed_bytes
from qwench.ops.native import Native, instruction_sets
from qwench.ops.quantised import ARRAYS, Codes, allocate
from qwench.ops.rounding import round_natively
from qwench.ops.weight_types import GGUF_TYPES, OWN_TYPES, WeightType
from qwench.weights.formats import gguf_blocks, own
from qwench.weights.gguf_match import NUMBERS
from qwench.weights.quantise import quantise
from tests.weights.test_gguf_blocks import random_blocks

SHAPES = [(1, 256), (17, 512), (200, 768), (64, 256), (130, 2304)]
ODD = [(1, 32), (17, 96), (200, 352), (5, 544)]
OWN = [pytest.param(kind, id=name) for name, kind in OWN_TYPES.items()]


def none(_: int) -> None:
    """Whoever does not look at the progress."""


def finish(load: Loading, told: Callable[[int], None], isa: str | None = None, threads: int = 2) -> None:
    native = Native(isa or instruction_sets()[0], threads)  # lives as long as its context is used
    load.finish(native.context, told)


def loaded(matrix: MatrixInFile, threads: int = 2, isa: str | None = None) -> bytes:
    load = Loading([matrix])
    ctypes.memset(load.addresses[matrix.name, 0], 0xA5, load.arena.num_bytes)  # whatever was there must not matter
    finish(load, none, isa, threads)
    assert load.bytes_read == load.num_bytes
    return ctypes.string_at(load.addresses[matrix.name, 0], packed_size(matrix))


def packed_size(matrix: MatrixInFile) -> int:
    numbers = loading.numbers_of(matrix.type)
    size: int = loading.load_library().qw_packed_bytes(numbers, matrix.out, matrix.width)
    return size


def packed(value: torch.Tensor | Codes) -> bytes:
    native = Native(instruction_sets()[-1], 1)
    kind, (out, width) = (
        (value.type, (value.out, value.width)) if isinstance(value, Codes) else (dtype_of(value), value.shape)
    )
    arena = Arena(native.packed_bytes(kind, out, width))
    matrix = native.reserve(kind, out, width, arena)
    native.pack_rows(value, matrix, 0)
    size = loading.load_library().qw_packed_bytes(
        loading.numbers_of(kind if isinstance(kind, WeightType) else ELEMENTS[str(kind)]), out, width
    )
    return ctypes.string_at(matrix.address, size)


def written(path: Path, *arrays: torch.Tensor) -> tuple[int, ...]:
    """The arrays one after the other behind a few other bytes; where each begins."""
    offsets, data = [], b"\x07" * 37
    for array in arrays:
        offsets.append(len(data))
        data += array.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    path.write_bytes(data)
    return tuple(offsets)


@pytest.mark.parametrize("name", GGUF_TYPES)
def test_gguf_blocks(name: str, tmp_path: Path) -> None:
    kind = GGUF_TYPES[name]
    for out, width in SHAPES if kind.nested else SHAPES + ODD:
        raw = torch.from_numpy(random_blocks(name, out, width, seed=out))
        codes = allocate(kind, out, width)
        gguf_blocks.decode(raw.numpy(), codes)
        offsets = written(tmp_path / "w", raw)
        rows = RowsInFile(tmp_path / "w", GGUF + NUMBERS[name], out, raw.numel(), offsets)
        assert loaded(MatrixInFile("w", 0, kind, out, width, (rows,))) == packed(codes), (out, width)


@pytest.mark.parametrize("kind", OWN)
def test_our_own_format(kind: WeightType, tmp_path: Path) -> None:
    for out, width in [*SHAPES, *ODD, (3, 300)]:
        codes = quantise(torch.randn(out, width, generator=torch.Generator().manual_seed(out)), kind)
        stored = own.encode(codes)
        places = written(tmp_path / "w", *stored.values())
        offsets = dict(zip(stored, places, strict=True))
        size = sum(array.numel() * array.itemsize for array in stored.values())
        rows = RowsInFile(tmp_path / "w", BITS, out, size, tuple(offsets.get(name, 0) for name in ARRAYS))
        assert loaded(MatrixInFile("w", 0, kind, out, width, (rows,))) == packed(codes), (out, width)


@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers(stored: torch.dtype, to: torch.dtype, tmp_path: Path) -> None:
    for out, width in [(1, 1), (5, 3), (64, 64), (130, 47), (200, 96)]:
        weight = torch.randn(out, width, generator=torch.Generator().manual_seed(out)).to(stored)
        weight.view(-1)[:1] = 6e-8
        offsets = written(tmp_path / "w", weight)
        rows = RowsInFile(tmp_path / "w", ELEMENTS[str(stored)[6:]], out, weight.numel() * stored.itemsize, offsets)
        matrix = MatrixInFile("w", 0, ELEMENTS[str(to)[6:]], out, width, (rows,))
        assert loaded(matrix) == packed(weight.to(to)), (out, width)


def weights(out: int, width: int, sort: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(out + width)
    numbers = torch.randn(out, width, generator=generator) * 0.03
    if sort == "heavy":
        numbers *= 1 + 8 * (torch.rand(out, width, generator=generator) < 0.01)
    if sort == "shifted":
        numbers += 0.05
    if sort == "tiny":
        numbers *= 10.0 ** torch.randint(-44, 0, (out, 1), generator=generator)
    if sort == "whole":  # ties everywhere, and blocks of nothing but zeros of either sign
        numbers = (numbers * 40).round() * 0.5
        numbers[:, :64] = 0.0
        numbers[:, 16:48] *= -1.0
    return numbers


@pytest.mark.parametrize("sort", ["normal", "heavy", "shifted", "tiny", "whole"])
@pytest.mark.parametrize("isa", [*dict.fromkeys(["scalar", *instruction_sets()])])
@pytest.mark.parametrize("kind", OWN)
def test_rounding_gives_the_bits_of_the_reference(kind: WeightType, isa: str, sort: str, tmp_path: Path) -> None:
    for out, width, stored in [(3, 513, torch.float32), (37, 768, torch.bfloat16), (16, 256, torch.float16)]:
        weight = weights(out, width, sort).to(stored)
        offsets = written(tmp_path / "w", weight)
        rows = RowsInFile(tmp_path / "w", ELEMENTS[str(stored)[6:]], out, weight.numel() * stored.itemsize, offsets)
        found = loaded(MatrixInFile("w", 0, kind, out, width, (rows,)), isa=isa)
        expected = quantise(weight.float(), kind)
        assert found == packed(expected), (out, width, stored)
        arrays = round_natively(Native(isa, 2), weight, kind).arrays
        assert all(torch.equal(arrays[name], array) for name, array in expected.arrays.items())


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_several_places_make_one_matrix(threads: int, tmp_path: Path) -> None:
    kind = GGUF_TYPES["Q4_K"]
    raw = torch.from_numpy(random_blocks("Q4_K", 150, 512, seed=3))
    first, second = written(tmp_path / "w", raw[:64], raw[64:])
    size = raw.shape[1]
    rows = (
        RowsInFile(tmp_path / "w", GGUF + 12, 64, 64 * size, (first,)),
        RowsInFile(tmp_path / "w", GGUF + 12, 86, 86 * size, (second,)),
    )
    codes = allocate(kind, 150, 512)
    gguf_blocks.decode(raw.numpy(), codes)
    assert loaded(MatrixInFile("w", 0, kind, 150, 512, rows), threads) == packed(codes)


def test_what_was_begun_is_finished_by_others(tmp_path: Path) -> None:
    raw = torch.from_numpy(random_blocks("Q6_K", 3000, 512, seed=3))
    offsets = written(tmp_path / "w", raw)
    rows = RowsInFile(tmp_path / "w", GGUF + 14, 3000, raw.numel(), offsets)
    matrix = MatrixInFile("w", 0, GGUF_TYPES["Q6_K"], 3000, 512, (rows,))
    begun = Loading([matrix])
    begun.begin(1)
    begun.stop()
    told: list[int] = []
    finish(begun, told.append)
    assert begun.bytes_read == raw.numel()
    assert ctypes.string_at(begun.addresses["w", 0], packed_size(matrix)) == loaded(matrix)


def one_row(path: Path, rows: int = 64) -> MatrixInFile:
    stored = RowsInFile(path, GGUF + 8, rows, rows * 34, (0,))
    return MatrixInFile("w", 0, GGUF_TYPES["Q8_0"], rows, 32, (stored,))


def test_a_file_that_ends_is_told(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(34 * 63))
    with pytest.raises(Unloadable) as told:
        finish(Loading([one_row(tmp_path / "w")]), none)
    assert (told.value.name, told.value.status) == ("w", loading.SHORT)


def test_whoever_looks_may_end_it(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(34 * 64))
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish(Loading([one_row(tmp_path / "w")]), stop)
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) == before


LEFT = """
import sys
from pathlib import Path
from qwench.ops.loading import GGUF, Loading, MatrixInFile, RowsInFile
from qwench.ops.weight_types import GGUF_TYPES

rows = RowsInFile(Path(sys.argv[1]), GGUF + 8, ROWS, ROWS * 34 * 32, (0,))
Loading([MatrixInFile("w", 0, GGUF_TYPES["Q8_0"], ROWS, 1024, (rows,))]).begin(2)
sys.exit(3)
"""


def test_a_program_may_end_while_weights_are_loaded(tmp_path: Path) -> None:
    rows = 1 << 18
    with (tmp_path / "w").open("wb") as file:
        file.truncate(rows * 34 * 32)
    command = [sys.executable, "-c", LEFT.replace("ROWS", str(rows)), str(tmp_path / "w")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (3, "")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", OWN)
def test_what_is_no_number_is_refused(kind: WeightType, value: float, tmp_path: Path) -> None:
    weight = weights(20, 512, "normal")
    weight[17, 300] = value
    offsets = written(tmp_path / "w", weight)
    rows = RowsInFile(tmp_path / "w", ELEMENTS["float32"], 20, weight.numel() * 4, offsets)
    with pytest.raises(Unloadable):
        loaded(MatrixInFile("w", 0, kind, 20, 512, (rows,)))


def test_rows_that_cannot_become_the_type_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(bytes(34 * 64))
    stored = RowsInFile(tmp_path / "w", GGUF + 8, 64, 34 * 64, (0,))
    for kind in (GGUF_TYPES["Q4_0"], GGUF_TYPES["Q4_K"], ELEMENTS["float32"]):
        with pytest.raises(Unloadable):
            loaded(MatrixInFile("w", 0, kind, 64, 32, (stored,)))
    assert packed_bytes(GGUF_TYPES["Q8_0"], 64, 32) % 64 == 0
