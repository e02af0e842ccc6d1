"""From a model's files to the stream of its weights, whatever the format. Knows neither kernels nor engines."""

from __future__ import annotations

import torch

from qwench.config import ModelConfig
from qwench.errors import CheckpointError
from qwench.files import ModelFiles
from qwench.gguf.file import GgufFile
from qwench.ops.quantised import WeightType
from qwench.weights.gguf import GgufSource
from qwench.weights.load import CheckpointSource
from qwench.weights.quantise import QuantisingSource
from qwench.weights.recipe import kinds_for
from qwench.weights.source import WeightSource


def open_weights(
    files: ModelFiles, config: ModelConfig, dtype: torch.dtype, quantization: str | None = None
) -> WeightSource:
    """The weights in ``files``, rounded by the recipe ``quantization`` on their way if there is one.

    A checkpoint that is packed in part keeps what is packed; only the rest is rounded. Raises CheckpointError naming
    tensor, file and shapes, or a GGUF file that is quantised already.
    """
    if quantization is None:
        return _source(files, config, dtype)
    source = _source(files, config, torch.float32)
    stored = sorted({kind.name for kind in source.kinds.values() if isinstance(kind, WeightType)})
    if stored and isinstance(files, GgufFile):
        raise CheckpointError(
            f"{files.path} is quantised already ({', '.join(stored)}); leave quantization out, or take an "
            f"unquantised file."
        )
    return QuantisingSource(source, kinds_for(config, quantization, dtype))


def _source(files: ModelFiles, config: ModelConfig, dtype: torch.dtype) -> WeightSource:
    return GgufSource(files, config, dtype) if isinstance(files, GgufFile) else CheckpointSource(files, config, dtype)
