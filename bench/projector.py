"""Vision projectors (mmproj) with random weights in the shape of a published tower, for both sides of a benchmark.

Names and types are those of llama.cpp's converter: norms, biases, positions and the patch stay numbers, every other
matrix becomes what is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from qwench.config import VisionConfig
from qwench.gguf.config import PROJECTOR
from qwench.model.parameters import declare_vision
from qwench.weights.names_gguf import PATCH_SLICES, mmproj_stored_name

Numbers = np.ndarray[Any, np.dtype[np.float32]]
TYPES = ("BF16", "F16", "Q8_0")


def write_projector(path: Path, config: VisionConfig, kind: str, seed: int = 0) -> None:
    """Write the file, whole or not at all."""
    unfinished = path.with_name(path.name + ".unfinished")
    writer = gguf.GGUFWriter(unfinished, "clip")
    describe(writer, config)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    for name, values in _tensors(config, np.random.default_rng(seed)):
        stored = "F32" if values.ndim != 2 or name.startswith("v.position") else kind
        chosen = gguf.GGMLQuantizationType[stored]
        writer.add_tensor(name, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


def describe(writer: gguf.GGUFWriter, config: VisionConfig, kind: str = PROJECTOR, width: int | None = None) -> None:
    """The metadata of the tower's shape; ``kind`` of projector and ``width`` of its rows, where they are others."""
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(value=True)
    writer.add_clip_projector_type(kind)
    writer.add_vision_projection_dim(config.out_hidden_size if width is None else width)
    writer.add_vision_image_size(math.isqrt(config.num_position_embeddings) * config.patch_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_block_count(config.depth)
    writer.add_vision_head_count(config.num_heads)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_spatial_merge_size(config.spatial_merge_size)
    writer.add_vision_use_gelu(value=True)


def _tensors(config: VisionConfig, draw: np.random.Generator) -> Iterator[tuple[str, Numbers]]:
    """Every tensor by its stored name, of a size that keeps activations of order 1; norms change little."""
    for name, spec in declare_vision(config).items():
        values = draw.standard_normal(spec.shape, np.float32) * np.float32(spec.shape[-1] ** -0.5)
        if spec.kind == "vector" and not name.endswith(".bias"):
            values += np.float32(1)
        if name == "patch":
            sides = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
            frames = values.reshape(-1, *sides).swapaxes(1, 2)  # [out, frame, channel, row, column]
            for frame, stored in enumerate(PATCH_SLICES):
                yield stored, np.ascontiguousarray(frames[:, frame])
        else:
            yield mmproj_stored_name(name), values
