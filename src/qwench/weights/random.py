"""Random weights of any shape, for benchmarks and trials without a checkpoint. Knows no files.

Values come from one pool, read on and on at a running offset: the cost is one write of memory. The same seed gives
the same weights on every device.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace

import numpy as np

from qwench.config import ModelConfig
from qwench.model.parameters import ParameterSpec, declare
from qwench.ops.arrays import DType, Host
from qwench.ops.loading import MatrixInFile
from qwench.ops.quantised import Codes, codes_of
from qwench.ops.store import Kind, Value
from qwench.ops.weight_types import SUPER_BLOCK, WeightType
from qwench.weights.source import Part, Progress, UnusedTensor, bits_of, memory_bytes, piece_rows

POOL = 4_194_301  # a prime, so that rows of a matrix do not repeat one another


class RandomSource:
    """A WeightSource drawn from ``seed``, scaled so that activations stay near one and states decay as trained ones do.

    Quantised matrices get random codes at once: nothing is rounded, and no matrix exists in full precision.
    """

    def __init__(self, config: ModelConfig, kinds: Mapping[str, Kind], seed: int) -> None:
        self.kinds = kinds
        self.unused: tuple[UnusedTensor, ...] = ()
        self._config, self._seed = config, seed

    def stored(self) -> tuple[MatrixInFile, ...]:
        """Nothing lies in a file."""
        return ()

    def parts(self, progress: Progress | None = None, without: Container[str] = ()) -> Iterator[tuple[Part, Value]]:
        """See WeightSource."""
        draw = _Pool(self._seed)
        total = memory_bytes(self._config, self.kinds)
        done = 0.0
        for name, spec in declare(self._config).items():
            kind, spread = self.kinds[name], _distribution(name, spec, self._config)
            for part, shape in _pieces(name, spec):
                value: Value
                if isinstance(kind, WeightType):
                    value = draw.codes(shape, kind, spread[1])
                else:
                    value = draw.numbers(shape, kind, *spread)
                if name not in without:  # it was drawn all the same: what comes later depends on it
                    yield part, value
                done += bits_of(replace(spec, shape=shape), kind) / 8
                if progress is not None:
                    progress(min(total, int(done)), total)


def _pieces(name: str, spec: ParameterSpec) -> Iterator[tuple[Part, tuple[int, ...]]]:
    """Experts one by one, large matrices in pieces, all else whole."""
    if spec.kind == "experts":
        yield from ((Part(name, expert), spec.shape[1:]) for expert in range(spec.shape[0]))
    elif spec.kind in ("vector", "float32"):
        yield Part(name), spec.shape
    else:
        out, width = spec.shape
        step = piece_rows(width)
        yield from ((Part(name), (min(step, out - first), width)) for first in range(0, out, step))


class _Pool:
    """Normal numbers and random bytes, read on and on."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self._numbers = generator.standard_normal(POOL, np.float32)
        self._bytes = generator.integers(0, 256, POOL, np.uint8)
        self._scaled: dict[tuple[float, DType], Host] = {}  # a model has only a handful of spreads
        self._masked: dict[int, Host] = {}
        self._offset = 0

    def numbers(self, shape: tuple[int, ...], dtype: DType, mean: float, deviation: float) -> Host:
        if (deviation, dtype) not in self._scaled:
            self._scaled[deviation, dtype] = (self._numbers * np.float32(deviation)).astype(dtype)
        array = np.empty(shape, dtype)
        self._fill(array.reshape(-1), self._scaled[deviation, dtype])
        return (array.astype(np.float32) + np.float32(mean)).astype(dtype) if mean else array

    def codes(self, shape: tuple[int, ...], kind: WeightType, deviation: float) -> Codes:
        """Uniform codes, with the one scale (and the min) that gives mean zero and this deviation."""
        if kind.bits not in self._masked:
            self._masked[kind.bits] = self._bytes & (2**kind.bits - 1)
        out, width = shape
        depth = -(-width // kind.depth_multiple) * kind.depth_multiple
        codes = np.empty((out, depth), np.uint8)
        self._fill(codes.reshape(-1), self._masked[kind.bits])
        return codes_of(kind, width, {"codes": codes} | _even_scales(kind, out, depth, deviation))

    def _fill(self, flat: Host, pool: Host) -> None:
        """Copy pool values from where the last array stopped, wrapping round."""
        position = 0
        while position < len(flat):
            count = min(len(flat) - position, len(pool) - self._offset)
            flat[position : position + count] = pool[self._offset : self._offset + count]
            position += count
            self._offset = (self._offset + count) % len(pool)


def _even_scales(kind: WeightType, out: int, depth: int, deviation: float) -> dict[str, Host]:
    """Scales and mins, the same in every block, under which uniform codes have mean zero and ``deviation``."""
    values = kind.table or tuple(code - kind.zero for code in range(2**kind.bits))
    mean = sum(values) / len(values)
    scale = deviation / math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    blocks, supers = (out, depth // kind.block), (out, depth // SUPER_BLOCK)
    if not kind.nested:
        dtype = np.dtype(kind.scale_format)
        found = {"scales": np.full(blocks, scale, dtype)}
        return found | ({"mins": np.full(blocks, scale * mean, dtype)} if kind.has_min else {})
    whole = 32  # any whole number serves: the super-block's float carries the rest
    found = {
        "scales": np.full(blocks, whole, np.int8),
        "super_scales": np.full(supers, scale / whole, np.float16),
    }
    if kind.has_min:
        found["mins"] = np.full(blocks, whole, np.uint8)
        found["super_mins"] = np.full(supers, scale * mean / whole, np.float16)
    return found


def _distribution(name: str, spec: ParameterSpec, config: ModelConfig) -> tuple[float, float]:
    """Mean and standard deviation of a parameter."""
    if name.endswith("a_log"):
        return -1.5, 1.0  # decay rates exp(a_log) from about 0.03 to 1.5, as in trained models
    if name.endswith("dt_bias"):
        return -1.5, 1.0
    if name.endswith("delta.conv"):
        return 0.0, 1.0 / math.sqrt(spec.shape[-1])
    if spec.kind == "vector":
        plain = name.endswith("delta.norm") or not config.zero_centred_norms
        return (1.0 if plain else 0.0), 0.1
    if spec.kind == "table":
        return 0.0, 0.3
    return 0.0, 1.0 / math.sqrt(spec.shape[-1])
