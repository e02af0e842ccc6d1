"""A load that begins before the engine is there: the other processors read and pack while this one imports.

Only what is certain by then is begun; whoever loads later does the rest, and says what is wrong with a file. No torch.
"""

from __future__ import annotations

import os

from qwench.config import EngineConfig, ModelConfig
from qwench.device import probe
from qwench.engine.resolve import resolve_dtype
from qwench.errors import QwenchError
from qwench.files import ModelFiles
from qwench.ops.arrays import DTYPES
from qwench.ops.kernels import native_usable
from qwench.ops.loading import ISA_VARIABLE, Loading, packed_bytes
from qwench.weights.open import open_weights

MEMORY_SHARE = 0.8  # of what is free: more is left to whoever can say what would fit


def begin(config: EngineConfig, model: ModelConfig, files: ModelFiles) -> Loading | None:
    """The matrices that the native library loads by itself, on their way into memory; None where it may not serve."""
    machine = probe()
    gpu_serves = machine.nvidia_driver and config.device == "auto"
    if gpu_serves or config.device not in ("auto", "cpu") or os.environ.get(ISA_VARIABLE) == "torch":
        return None
    try:
        dtype = DTYPES[resolve_dtype(config, model).value]
        if not native_usable("cpu", dtype)[0]:
            return None
        matrices = open_weights(files, model, dtype, config.quantization).stored()
        size = sum(packed_bytes(matrix.type, matrix.out, matrix.width) for matrix in matrices)
        if not matrices or size > MEMORY_SHARE * machine.memory_available:
            return None
        loading = Loading(matrices)
    except (QwenchError, OSError, MemoryError):
        return None
    loading.begin(max(1, machine.threads - 1))
    return loading
