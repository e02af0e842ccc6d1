"""From a model's files to the stream of its weights, whatever the format. Knows neither kernels nor engines."""

from __future__ import annotations

from qwench.config import ModelConfig
from qwench.errors import CheckpointError
from qwench.files import ModelFiles
from qwench.gguf.file import GgufFile
from qwench.ops.arrays import FLOAT32, DType
from qwench.ops.weight_types import WeightType
from qwench.weights.gguf import GgufSource
from qwench.weights.load import CheckpointSource
from qwench.weights.quantise import QuantisingSource
from qwench.weights.recipe import kinds_for
from qwench.weights.source import WeightSource


def open_weights(files: ModelFiles, config: ModelConfig, dtype: DType, quantization: str | None = None) -> WeightSource:
    """The weights in ``files``, rounded by the recipe ``quantization`` on their way if there is one.

    What a checkpoint holds packed stays as it is, and the rest is rounded. Raises CheckpointError naming tensor, file
    and shapes; files in which nothing is left to round; a quantised GGUF file, whose maker chose every type.
    """
    if quantization is None:
        return _source(files, config, dtype)
    source, kinds = _source(files, config, FLOAT32), kinds_for(config, quantization, dtype)
    stored = {name: kind.name for name, kind in source.kinds.items() if isinstance(kind, WeightType)}
    left = any(isinstance(kind, WeightType) and name not in stored for name, kind in kinds.items())
    if stored and (isinstance(files, GgufFile) or not left):
        path = files.path if isinstance(files, GgufFile) else files
        raise CheckpointError(
            f"{path} is quantised already ({', '.join(sorted(set(stored.values())))}); leave quantization out, or take "
            f"an unquantised one."
        )
    return QuantisingSource(source, kinds)


def _source(files: ModelFiles, config: ModelConfig, dtype: DType) -> WeightSource:
    return GgufSource(files, config, dtype) if isinstance(files, GgufFile) else CheckpointSource(files, config, dtype)
