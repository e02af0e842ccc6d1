"""Packed checkpoints that do not fit: one sentence that names tensor, file and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwench.config import ModelConfig
from qwench.errors import CheckpointError
from qwench.model.parameters import declare
from qwench.ops.arrays import FLOAT32
from qwench.ops.quantised import Codes, dequantise
from qwench.ops.weight_types import OWN_TYPES
from qwench.weights.names import Place, stored_name
from qwench.weights.open import open_weights
from tests.weights import checkpoints, packers
from tests.weights.collected import parts_of
from tests.weights.packed_checkpoints import SORTS, Tensors, mxfp4, write

MODULE = "model.layers.0.mlp.up_proj"
GPTQ = (".qweight", ".qzeros", ".scales", ".g_idx")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of a model of a kind, stored as a sort; made once."""
    made: dict[tuple[str, str], Path] = {}
    root = tmp_path_factory.mktemp("packed")

    def get(kind: str, sort: str) -> Path:
        if (kind, sort) not in made:
            model = checkpoints.build(kind)
            checkpoints.save(model, root / kind)
            target = root / f"{kind}-{sort}"
            assert write(model, root / kind, target, SORTS[sort])
            made[kind, sort] = target
        return made[kind, sort]

    return get


def changed(source: Path, target: Path, change: Callable[[Tensors], object], **config: Any) -> Path:
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((source / "config.json").read_text())
    raw["quantization_config"] |= config
    (target / "config.json").write_text(json.dumps(raw))
    return target


def message_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        list(open_weights(folder, ModelConfig.from_folder(folder), FLOAT32, None).parts())
    assert caught.value.message.endswith((".", "?"))
    return caught.value.message


def put(name: str, value: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


def pack_norm(tensors: Tensors) -> None:
    del tensors["model.norm.weight"]
    tensors |= {f"model.norm{name}": tensors[MODULE + name].clone() for name in GPTQ}


REFUSED: list[tuple[str, Callable[[Tensors], object], str]] = [
    ("gptq", lambda t: t.pop(f"{MODULE}.scales"), "{m}.qweight in {f} is packed, but its {m}.scales is missing;"),
    ("gptq", lambda t: t.pop(f"{MODULE}.qzeros"), "{m}.qweight in {f} is packed, but its {m}.qzeros is missing;"),
    ("gptq", lambda t: t.pop(f"{MODULE}.qweight"), "this model has no place for: {m}.g_idx [32] in {f}, {m}.qzeros"),
    (
        "gptq",
        put(f"{MODULE}.scales", torch.ones(2, 24)),
        "Tensor {m}.scales in {f} has shape [2, 24]; [1, 24] is expected from config.json.",
    ),
    (
        "gptq",
        put(f"{MODULE}.qweight", torch.ones(8, 24, dtype=torch.int32)),
        "Tensor {m}.qweight in {f} has shape [8, 24]; [4, 24] is expected from config.json.",
    ),
    ("gptq", put(f"{MODULE}.scales", torch.ones(1, 24).int()), "{m}.scales in {f} has the type I32; F16 or BF16"),
    ("gptq", put(f"{MODULE}.qweight", torch.ones(4, 24).long()), "Tensor {m}.qweight in {f} has the type I64; I32 is"),
    ("gptq", put(f"{MODULE}.g_idx", torch.ones(32).int()), "Tensor {m}.g_idx in {f} holds 1, but there are 1 groups."),
    (
        "gptq",
        put("model.layers.0.self_attn.o_proj.g_idx", torch.arange(64).flip(0).int() // 32),
        "Tensor model.layers.0.self_attn.o_proj.g_idx in {f} reorders the inputs (act-order, desc_act), so that",
    ),
    ("gptq", put(f"{MODULE}.scales", torch.full((1, 24), torch.inf)), "{m}.scales in {f} holds a number that is not"),
    ("gptq", put(f"{MODULE}.weight", torch.ones(24, 32)), "{m}.weight (model.safetensors) and {m}.qweight"),
    (
        "gptq",
        pack_norm,
        "Tensor model.norm.qweight in {f} is packed, but model.norm.weight is no matrix.",
    ),
    ("awq", put(f"{MODULE}.qweight", torch.ones(4, 24).int()), "{m}.qweight in {f} has shape [4, 24]; [32, 3] is"),
    (
        "packed",
        put(f"{MODULE}.weight_shape", torch.tensor([24, 31])),
        "Tensor {m}.weight_shape in {f} holds [24, 31]; [24, 32] is expected from config.json.",
    ),
    ("packed", lambda t: t.pop(f"{MODULE}.weight_zero_point"), "{m}.weight_packed in {f} is packed, but its"),
    ("nvfp4", put(f"{MODULE}.weight_scale", torch.ones(24, 2)), "{m}.weight_scale in {f} has the type F32; F8_E4M3 is"),
    ("nvfp4", put(f"{MODULE}.weight_scale_2", torch.ones(3)), "{m}.weight_scale_2 in {f} has shape [3]; [] or [1] is"),
    ("nvfp4", put(f"{MODULE}.weight_scale_2", torch.zeros(1)), "{m}.weight_scale_2 in {f} is 0; it must be a positive"),
    (
        "mxfp4",
        put(f"{MODULE}.weight_scale", torch.full((24, 1), 255).byte()),
        "Tensor {m}.weight_scale in {f} holds 255, which stands for no number.",
    ),
    ("fp8", put(f"{MODULE}.weight_scale", torch.ones(24, 2)), "{m}.weight_scale in {f} has shape [24, 2]; [24, 1] or"),
]  # fmt: skip


@pytest.mark.parametrize(("sort", "change", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_does_not_fit_is_named(
    saved: Callable[[str, str], Path],
    tmp_path: Path,
    sort: str,
    change: Callable[[Tensors], object],
    sentence: str,
) -> None:
    folder = changed(saved("qwen3", sort), tmp_path / "x", change)
    assert sentence.format(m=MODULE, f=folder / "model.safetensors") in message_of(folder)


def test_a_packed_matrix_that_config_says_was_kept(saved: Callable[[str, str], Path], tmp_path: Path) -> None:
    folder = changed(saved("qwen3", "gptq"), tmp_path / "x", lambda _: None, dynamic={"-:.*up_proj": {}})
    assert message_of(folder) == (
        f"Tensor {MODULE}.qweight in {folder / 'model.safetensors'} is packed, but "
        f"quantization_config.dynamic.-:.*up_proj of config.json says that {MODULE} was kept unquantised; take "
        f"config.json from the repository of these weights."
    )


def test_a_matrix_stored_otherwise_than_config_says(saved: Callable[[str, str], Path], tmp_path: Path) -> None:
    group = {"targets": ["re:.*up_proj"], "weights": {"num_bits": 8, "strategy": "channel"}, "format": "int-quantized"}
    source = saved("qwen3", "packed")
    groups = json.loads((source / "config.json").read_text())["quantization_config"]["config_groups"] | {"up": group}
    folder = changed(source, tmp_path / "x", lambda _: None, config_groups=groups)
    told = (
        f"Tensor {MODULE}.weight_packed in {folder / 'model.safetensors'} is not how quantization_config.config_groups"
    )
    assert message_of(folder).startswith(f"{told}.up.targets of config.json stores {MODULE} (int8); take")


def test_experts_must_be_alike(saved: Callable[[str, str], Path], tmp_path: Path) -> None:
    module = "model.language_model.layers.0.mlp.experts.3.up_proj"

    def unpack(tensors: Tensors) -> None:
        for suffix in GPTQ:
            del tensors[module + suffix]
        tensors[f"{module}.weight"] = torch.ones(12, 32)

    folder = changed(saved("qwen3_5_moe", "gptq"), tmp_path / "x", unpack)
    message = message_of(folder)
    assert f"{module}.weight (model.safetensors) " in message
    assert message.endswith(
        "stored in different ways; that is not supported, take a checkpoint whose experts are all alike."
    )


def test_modules_that_were_kept_although_config_does_not_say_so_are_read(
    saved: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """What is stored plainly is unambiguous; producers forget to list it."""

    def unpack(tensors: Tensors) -> None:
        for suffix in GPTQ:
            del tensors[MODULE + suffix]
        tensors[f"{MODULE}.weight"] = torch.ones(24, 32)

    folder = changed(saved("qwen3", "gptq"), tmp_path / "x", unpack)
    source = open_weights(folder, ModelConfig.from_folder(folder), FLOAT32, None)
    assert source.kinds["layers.0.mlp.up"] is FLOAT32
    assert source.kinds["layers.1.mlp.up"] is not FLOAT32
    assert list(source.parts())


def test_a_quantization_rounds_what_is_not_packed(saved: Callable[[str, str], Path]) -> None:
    folder = saved("qwen3", "gptq")
    config = ModelConfig.from_folder(folder)
    plain, source = (open_weights(folder, config, FLOAT32, how) for how in (None, "q8"))
    assert (plain.kinds["embedding"], source.kinds["layers.0.mlp.up"]) == (
        FLOAT32,
        plain.kinds["layers.0.mlp.up"],
    )
    assert source.kinds["embedding"] == OWN_TYPES["q8"]
    assert {part.name for part, _ in source.parts()} == set(declare(config))


def test_fused_experts_in_blocks(tmp_path: Path) -> None:
    """transformers' mxfp4: all experts of a layer in one tensor of codes and one of scales."""
    shape = {"num_experts": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    raw = json.loads(checkpoints.build("qwen3_5_moe").config.to_json_string(use_diff=False))
    raw["text_config"] |= shape
    raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = ModelConfig.from_folder(tmp_path)
    stored: Tensors = {}
    wanted: dict[tuple[str, int], torch.Tensor] = {}
    for name, spec in declare(config).items():
        place = stored_name(Place(name))
        if spec.kind != "experts":
            form = (spec.shape[0], 1, spec.shape[1]) if name.endswith("delta.conv") else spec.shape
            stored[place] = torch.ones(form)
            continue
        matrices = [mxfp4(torch.randn(spec.shape[1:]), 0.0) for _ in range(spec.shape[0])]
        wanted |= {(name, index): matrix.values for index, matrix in enumerate(matrices)}
        blocks = [matrix.octets.view(spec.shape[1], -1, 16) for matrix in matrices]
        stored[f"{place}_blocks"] = torch.stack(blocks)
        stored[f"{place}_scales"] = torch.stack([packers.exponent_bytes(matrix) for matrix in matrices])
    save_file(stored, tmp_path / "model.safetensors")
    parts = parts_of(open_weights(tmp_path, config, FLOAT32, None))
    for part, value in parts.items():
        if part.expert is not None:
            assert isinstance(value, Codes)
            assert torch.equal(dequantise(value).double(), wanted[part.name, part.expert])
