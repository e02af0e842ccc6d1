"""A load that begins before torch is there: the other processors read and pack while this one imports.

Only what is certain by then is begun; whoever loads later does the rest, and says what is wrong with a file. No torch.
"""

from __future__ import annotations

import os

from qwench.config import EngineConfig, ModelConfig
from qwench.device import probe
from qwench.errors import CheckpointError
from qwench.files import ModelFiles
from qwench.gguf.file import GgufFile
from qwench.ops.loading import ISA_VARIABLE, Loading, packed_bytes
from qwench.weights.gguf_match import GgufTensors, stored_matrices

MEMORY_SHARE = 0.8  # of what is free: more is left to whoever can say what would fit


def begin(config: EngineConfig, model: ModelConfig, files: ModelFiles) -> Loading | None:
    """The quantised matrices of a GGUF file, on their way into memory; None where the native kernels may not serve."""
    torch_computes = os.environ.get(ISA_VARIABLE) == "torch" or config.dtype == "float16" or config.quantization
    if not isinstance(files, GgufFile) or config.device not in ("auto", "cpu") or torch_computes:
        return None
    machine = probe()
    if machine.nvidia_driver and config.device == "auto":
        return None
    try:
        matrices = stored_matrices(GgufTensors(files, model))
        size = sum(packed_bytes(matrix.type, matrix.out, matrix.width) for matrix in matrices)
        if not matrices or size > MEMORY_SHARE * machine.memory_available:
            return None
        loading = Loading(matrices)
    except (CheckpointError, OSError, MemoryError):
        return None
    loading.begin(max(1, machine.threads - 1))
    return loading
