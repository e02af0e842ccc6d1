"""What compressed-tensors itself writes is read as compressed-tensors itself reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwench.config import ModelConfig
from qwench.ops.quantised import dequantise
from qwench.weights.formats import compressed, mxfp4, nvfp4
from tests.config.test_model_config import text_only

pytest.importorskip("compressed_tensors")

OUT, WIDTH = 48, 256


def produced(layout: str, **weights: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, Any]]:
    """Tensors by suffix, what they mean to their producer, and the quantization_config that describes them."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    weight = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(3)) * 0.05
    grouped = weight.view(OUT, -1, args.group_size or WIDTH)
    low, high = grouped.amin(-1), grouped.amax(-1)
    state = {"weight": weight.bfloat16()}
    if layout == "nvfp4-pack-quantized":
        state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
    scale, zero = calculate_qparams(low, high, args, global_scale=state.get("weight_global_scale"))
    state |= {"weight_scale": scale if layout.startswith("nv") else scale.bfloat16(), "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(layout)
    packed = compressor.compress(state, scheme)
    meant = compressor.decompress(packed, scheme)["weight"]
    config = QuantizationConfig(config_groups={"group_0": scheme}, format=layout).model_dump(mode="json")
    return {f".{name}": tensor for name, tensor in packed.items()}, meant, config


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized(bits: int, group: int | None, symmetric: bool) -> None:
    strategy = "group" if group else "channel"
    fields = {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": group, "symmetric": symmetric}
    tensors, meant, config = produced("pack-quantized", **fields)
    found = dequantise(compressed.decode(tensors, scheme_of(config), OUT, WIDTH))
    assert_as_rounded(found, meant)


@pytest.mark.parametrize("layout", ["nvfp4-pack-quantized", "mxfp4-pack-quantized"])
def test_four_bit_floats(layout: str) -> None:
    size = 16 if layout.startswith("nv") else 32
    strategy = "tensor_group" if layout.startswith("nv") else "group"
    scale = torch.float8_e4m3fn if layout.startswith("nv") else torch.uint8
    fields = {"num_bits": 4, "type": "float", "strategy": strategy, "group_size": size, "scale_dtype": scale}
    tensors, meant, config = produced(layout, **fields)
    reader = nvfp4 if layout.startswith("nv") else mxfp4
    assert_as_rounded(dequantise(reader.decode(tensors, scheme_of(config), OUT, WIDTH)), meant)


def scheme_of(config: dict[str, Any]) -> Any:
    quantised = ModelConfig.from_dict(text_only("qwen3", quantization_config=config)).quantised
    assert quantised is not None
    return quantised.default


def assert_as_rounded(found: torch.Tensor, meant: torch.Tensor) -> None:
    """Their numbers come in BF16."""
    assert meant.dtype == torch.bfloat16
    torch.testing.assert_close(found, meant.float(), rtol=2**-7, atol=1e-4)
