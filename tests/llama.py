"""llama.cpp as an oracle, through llama-cpp-python: what its quantisers make of numbers, and what its models answer."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qwench.ops.quantised import allocate, dequantise
from qwench.ops.weight_types import GGUF_TYPES
from qwench.weights.formats import gguf_blocks

MISSING = "llama-cpp-python is not installed; `make oracle` builds it, which takes minutes and a C++ compiler"
MIXES = {"Q8_0": 7, "Q4_0": 2, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "BF16": 32}  # enum llama_ftype


def llama_cpp() -> Any:
    """The module. Skips the test that asks where there is none."""
    return pytest.importorskip("llama_cpp", reason=MISSING)


def rounded(weight: torch.Tensor, name: str) -> torch.Tensor:
    """``weight`` [out, width] as llama.cpp rounds it to its type ``name``; by the gguf package where that can."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    out, width = weight.shape
    if not name.endswith("_K"):
        stored = gguf.quants.quantize(weight.numpy(), kind)
    else:
        stored = np.empty((out, width // block * size), dtype=np.uint8)
        convert = llama_cpp().llama_cpp._lib.ggml_quantize_chunk
        convert.restype = ctypes.c_size_t
        source = np.ascontiguousarray(weight.numpy())
        addresses = (ctypes.c_void_p(each.ctypes.data) for each in (source, stored))
        written = convert(
            kind.value, *addresses, ctypes.c_int64(0), ctypes.c_int64(out), ctypes.c_int64(width), ctypes.c_void_p()
        )
        assert written == stored.size
    target = allocate(GGUF_TYPES[name], out, width)
    gguf_blocks.decode(stored, target)
    return dequantise(target)


def bits_per_weight(name: str) -> float:
    """Of llama.cpp's type ``name``, in a file."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    return 8 * size / block


def quantised_file(source: Path, target: Path, mix: str) -> Path:
    """The GGUF file ``source`` as llama.cpp's own program quantises it to ``mix``."""
    llama = llama_cpp()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = MIXES[mix], 1
    assert llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) == 0
    return target


def tensor_bytes(path: Path) -> int:
    """What all tensors of a GGUF file take."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)


def logits(path: Path, ids: Sequence[int]) -> torch.Tensor:
    """[len, V] of llama.cpp on one thread, with keys and values kept in fp32.

    In a process of its own: it sets up the processor's tiles once and counts on nobody else using them.
    """
    llama_cpp()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return torch.from_numpy(process.submit(_logits, path, list(ids)).result())


def _logits(path: Path, ids: list[int]) -> np.ndarray:
    model = llama_cpp().Llama(
        str(path), n_ctx=2 ** math.ceil(math.log2(len(ids) + 1)), n_threads=1, n_threads_batch=1, n_gpu_layers=0,
        type_k=gguf.GGMLQuantizationType.F32, type_v=gguf.GGMLQuantizationType.F32, flash_attn=False, logits_all=True,
        verbose=False,
    )  # fmt: skip
    model.eval(ids)
    return np.array(model.scores[: len(ids)], dtype=np.float32)
