"""quantization_config: each producer's fields become schemes and rules; what cannot be honoured is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.config import ModelConfig
from qwench.errors import ConfigError
from qwench.quantisation import Scheme, StoredQuantisation
from tests.config.test_model_config import text_only, wrapper

LAYER = "model.language_model.layers"

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 64], "activation_scheme": "dynamic"}
GPTQ = {
    "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False, "lm_head": False,
    "checkpoint_format": "gptq", "pack_dtype": "int32", "static_groups": False,
    "dynamic": {
        "-:.*attn.*": {}, "-:.*mtp.*": {}, "-:.*shared_expert.*": {}, "-:.*visual.*": {},
        "+:.*layers\\.1\\..*down_proj": {"bits": 8, "group_size": 32}, ".*layers\\.2\\..*": {"sym": False},
    },
}  # fmt: skip
AWQ = {
    "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": ["visual", "mlp.gate", "model.language_model.layers.0.self_attn"],
}  # fmt: skip
INT4 = {
    "num_bits": 4, "type": "int", "symmetric": False, "group_size": 32, "strategy": "group", "dynamic": False,
    "actorder": None, "observer": "mse", "observer_kwargs": {},
}  # fmt: skip
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": INT4, "input_activations": None, "output_activations": None},
        "group_1": {
            "targets": ["re:.*o_proj$", "model.language_model.layers.3.mlp.down_proj"],
            "weights": INT4 | {"num_bits": 8, "group_size": None, "strategy": "channel", "symmetric": True},
        },
    },
    "ignore": ["lm_head", "re:.*linear_attn.*", "re:.*mlp.gate$", "model.language_model.layers.0.self_attn.q_proj"],
    "kv_cache_scheme": None, "sparsity_config": {}, "global_compression_ratio": None,
}  # fmt: skip
MODELOPT = {
    "quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 16}, "targets": ["Linear"]}},
    "ignore": ["lm_head", "model.language_model.layers.0.linear_attn*", "model.visual*", "*mlp.gate"],
    "producer": {"name": "modelopt", "version": "0.39.0"},
}  # fmt: skip
QUARK = {
    "quant_method": "quark", "exclude": ["lm_head", "re:.*self_attn.*"], "layer_quant_config": {},
    "global_quant_config": {
        "weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "ch_axis": -1},
        "input_tensors": {"dtype": "fp4", "is_dynamic": True},
    },
}  # fmt: skip


def read(fields: dict[str, Any]) -> StoredQuantisation:
    """What the text-only form says, which is what a wrapper says."""
    found = ModelConfig.from_dict(text_only("qwen3", quantization_config=fields)).quantised
    assert found is not None
    assert found == ModelConfig.from_dict(wrapper("qwen3_5", {"quantization_config": fields})).quantised
    return found


def test_plain_weights() -> None:
    assert ModelConfig.from_dict(text_only("qwen3")).quantised is None


def test_block_fp8() -> None:
    found = read(FP8 | {"modules_to_not_convert": [f"{LAYER}.0.mlp", "lm_head"]})
    assert found.default == Scheme("fp8_block", 8, block=(128, 64))
    assert found.scheme_of(f"{LAYER}.0.mlp.up_proj") is None
    assert found.scheme_of("lm_head") is None
    assert found.scheme_of(f"{LAYER}.10.mlp.up_proj") == found.default
    assert ModelConfig.from_dict(text_only("qwen3", quantization_config=FP8)).fp8_block == (128, 64)
    assert ModelConfig.from_dict(text_only("qwen3", quantization_config=GPTQ)).fp8_block is None


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_gptq(layout: Any) -> None:
    found = read(GPTQ | {"checkpoint_format": layout})
    assert found.default == Scheme(layout, 4, 128)
    assert found.scheme_of(f"{LAYER}.0.mlp.experts.7.up_proj") == found.default
    assert found.scheme_of(f"{LAYER}.1.mlp.experts.7.down_proj") == Scheme(layout, 8, 32)
    assert found.scheme_of(f"{LAYER}.2.mlp.experts.7.down_proj") == Scheme(layout, 4, 128, symmetric=False)
    for kept in ("lm_head", f"{LAYER}.1.linear_attn.out_proj", f"{LAYER}.2.mlp.shared_expert.up_proj", "mtp.fc"):
        assert found.scheme_of(kept) is None
    rule = found.rule_of(f"{LAYER}.1.self_attn.o_proj")
    assert rule is not None
    assert rule.field == "quantization_config.dynamic.-:.*attn.*"
    assert set(found.schemes) == {
        Scheme(layout, 4, 128),
        Scheme(layout, 8, 32),
        Scheme(layout, 4, 128, symmetric=False),
    }


def test_gptq_of_some_modules_only() -> None:
    blocks = {"modules_in_block_to_quantize": [["self_attn.k_proj", "self_attn.q_proj"], ["mlp.up_proj"]]}
    found = read(GPTQ | blocks | {"dynamic": None, "group_size": -1, "lm_head": True})
    assert found.default == Scheme("gptq", 4, None)
    assert found.scheme_of(f"{LAYER}.0.self_attn.q_proj") == found.default
    assert found.scheme_of(f"{LAYER}.0.self_attn.v_proj") is None


def test_awq() -> None:
    found = read(AWQ)
    assert found.default == Scheme("awq", 4, 128, symmetric=False)
    assert found.scheme_of(f"{LAYER}.1.mlp.gate") is None
    assert found.scheme_of(f"{LAYER}.0.self_attn.q_proj") is None
    assert found.scheme_of(f"{LAYER}.1.mlp.gate_proj") == found.default
    assert read({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}).default == Scheme(
        "awq", 4, 64, symmetric=False
    )


def test_auto_round() -> None:
    extra = {f"{LAYER}.0.mlp.up_proj": {"bits": 16}, f"{LAYER}.1.mlp.up_proj": {"bits": 8, "group_size": 32}}
    fields = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": False, "extra_config": extra}
    found = read(fields | {"packing_format": "auto_round:auto_gptq", "block_name_to_quantize": ["model.layers"]})
    assert found.default == Scheme("gptq", 4, 128, symmetric=False)
    assert found.scheme_of(f"{LAYER}.0.mlp.up_proj") is None
    assert found.scheme_of(f"{LAYER}.1.mlp.up_proj") == Scheme("gptq", 8, 32, symmetric=False)
    assert found.scheme_of(f"{LAYER}.11.mlp.up_proj") == found.default
    older = {"quant_method": "intel/auto-round", "bits": 4, "group_size": 64, "backend": "auto_round:gptq:exllamav2"}
    assert read(older).default == Scheme("gptq", 4, 64)
    assert read(fields | {"packing_format": "auto_round:auto_awq"}).default == Scheme("awq", 4, 128, symmetric=False)


def test_compressed_tensors() -> None:
    found = read(COMPRESSED)
    assert found.default == Scheme("packed", 4, 32, symmetric=False)
    assert found.scheme_of(f"{LAYER}.3.mlp.up_proj") == found.default
    assert found.scheme_of(f"{LAYER}.3.mlp.down_proj") == Scheme("packed", 8)
    assert found.scheme_of(f"{LAYER}.3.self_attn.o_proj") == Scheme("packed", 8)
    for kept in ("lm_head", f"{LAYER}.1.linear_attn.out_proj", f"{LAYER}.2.mlp.gate", f"{LAYER}.0.self_attn.q_proj"):
        assert found.scheme_of(kept) is None
    assert found.scheme_of(f"{LAYER}.2.mlp.gate_proj") == found.default


@pytest.mark.parametrize(
    ("layout", "weights", "scheme"),
    [
        ("pack-quantized", {"num_bits": 4, "strategy": "channel"}, Scheme("packed")),
        ("pack-quantized", {"num_bits": 8, "group_size": 128}, Scheme("packed", 8, 128)),
        ("int-quantized", {"num_bits": 8, "strategy": "channel"}, Scheme("int8", 8)),
        ("float-quantized", {"type": "float", "strategy": "channel"}, Scheme("fp8_scale", 8, block=(1, None))),
        ("float-quantized", {"type": "float", "strategy": "tensor"}, Scheme("fp8_scale", 8)),
        (
            "float-quantized",
            {"type": "float", "strategy": "block", "block_structure": [128, 128]},
            Scheme("fp8_scale", 8, block=(128, 128)),
        ),
        (
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            Scheme("nvfp4_packed", 4, 16),
        ),
        ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 32}, Scheme("mxfp4_packed", 4, 32)),
    ],
)
def test_every_form_of_compressed_tensors(layout: str, weights: dict[str, Any], scheme: Scheme) -> None:
    group = {"targets": ["Linear"], "weights": weights}
    assert read(COMPRESSED | {"format": layout, "config_groups": {"group_0": group}}).default == scheme
    own = {"targets": ["Linear"], "weights": weights, "format": layout}
    assert read(COMPRESSED | {"format": "mixed-precision", "config_groups": {"group_0": own}}).default == scheme


def test_intricate_but_honest_patterns_are_read() -> None:
    layers = "|".join(map(str, range(40)))
    names = [rf"re:.*layers\.({layers})\.mlp\.experts\.\d+\.(gate|up)_proj$", "re:^(?!.*(mlp|self_attn)).*$"]
    found = read(COMPRESSED | {"ignore": names})
    assert found.scheme_of(f"{LAYER}.39.mlp.experts.17.up_proj") is None
    assert found.scheme_of(f"{LAYER}.40.mlp.experts.17.up_proj") == found.default
    assert found.scheme_of("lm_head") is None


def test_modelopt() -> None:
    for fields in (MODELOPT, {name: value for name, value in MODELOPT.items() if name != "quant_method"}):
        found = read(fields)
        assert found.default == Scheme("nvfp4", 4, 16)
        assert found.scheme_of(f"{LAYER}.0.linear_attn.out_proj") is None
        assert found.scheme_of(f"{LAYER}.1.mlp.gate") is None
        assert found.scheme_of("model.visual.blocks.0.attn.qkv") is None
        assert found.scheme_of(f"{LAYER}.1.mlp.gate_proj") == found.default
    assert read({"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": []}).default == Scheme(
        "fp8_scale", 8
    )


def test_modelopt_beside_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(text_only("qwen3")))
    side = {"producer": {}, "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(side))
    found = ModelConfig.from_folder(tmp_path).quantised
    assert found is not None
    assert found.default == Scheme("nvfp4", 4, 16)
    assert found.scheme_of("lm_head") is None
    (tmp_path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"hf_quant_config.json: quantization is missing"):
        ModelConfig.from_folder(tmp_path)


def test_mxfp4_and_quark() -> None:
    found = read({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    assert found.default == Scheme("mxfp4_blocks", 4, 32)
    assert found.scheme_of("model.layers.7.self_attn.q_proj") is None
    found = read(QUARK)
    assert found.default == Scheme("mxfp4", 4, 32)
    assert found.scheme_of(f"{LAYER}.0.self_attn.q_proj") is None


def group(**weights: Any) -> dict[str, Any]:
    return COMPRESSED | {"config_groups": {"group_0": {"targets": ["Linear"], "weights": INT4 | weights}}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "gtpq"}, "quant_method is 'gtpq', which is not known; known are fp8, gptq, awq, auto"),
    ({"quant_method": "gtpq"}, "; the nearest is gptq."),
    ({"quant_method": "bitsandbytes"}, "is 'bitsandbytes', which is not known; known are fp8"),
    ({"bits": 4}, "quantization_config.quant_method is missing"),
    ({"quant_method": "fp8"}, "weight_block_size is None; it must be two whole numbers such as [128, 128]"),
    (FP8 | {"fmt": "e5m2"}, "fmt is 'e5m2'; only 'e4m3' is supported"),
    (FP8 | {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert is 'lm_head'; it must be a list of module"),
    (GPTQ | {"bits": 3}, "bits is 3; packed whole numbers are supported with 4 and 8 bits"),
    (GPTQ | {"bits": None}, "quantization_config.bits is missing"),
    (GPTQ | {"group_size": 48}, "group_size is 48; supported are -1 and multiples of 32"),
    (GPTQ | {"sym": 1}, "sym is 1; it must be true or false"),
    (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; supported are 'gptq' and 'gptq_v2'"),
    (GPTQ | {"is_marlin_format": True}, "is_marlin_format is true; that order of the weights is for one kernel only"),
    (GPTQ | {"pack_dtype": "int8"}, "pack_dtype is 'int8'; only 'int32' is supported"),
    (GPTQ | {"dynamic": {"-:(": {}}}, "dynamic.-:( holds '(', which is no regular expression (missing )"),
    (GPTQ | {"dynamic": {"+:x": {"bits": 2}}}, "quantization_config.dynamic.+:x.bits is 2; packed"),
    (GPTQ | {"dynamic": ["x"]}, "dynamic is ['x']; it must be a JSON object"),
    (GPTQ | {"modules_in_block_to_quantize": [[1]]}, "modules_in_block_to_quantize must be lists of module names"),
    ({"quant_method": "auto-round", "bits": 4, "data_type": "mx_fp"}, "data_type is 'mx_fp'; only 'int'"),
    ({"quant_method": "auto-round", "bits": 4, "backend": "marlin"}, "backend is 'marlin'; supported are 'auto"),
    ({"quant_method": "auto-round", "bits": 2, "group_size": 128}, "bits is 2; packed whole numbers"),
    (AWQ | {"bits": 8}, "bits is 8; AWQ is supported with 4"),
    (AWQ | {"version": "gemv"}, "version is 'gemv'; only 'gemm' is supported"),
    (AWQ | {"zero_point": False}, "zero_point is false; AWQ weights are supported with zero points only"),
    (COMPRESSED | {"config_groups": {}}, "config_groups is missing or empty; it says how the weights are stored"),
    (COMPRESSED | {"transform_config": {"a": 1}}, "transform_config is not empty; transformed inputs are not sup"),
    (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format is 'spars"),
    (COMPRESSED | {"ignore": ["re:*"]}, "ignore holds '*', which is no regular expression (nothing to repeat"),
    (COMPRESSED | {"ignore": ["re:" + "x" * 2000]}, "ignore is a pattern of 2000 characters; at most 1000 are read"),
    (COMPRESSED | {"ignore": ["re:(a+)+$"]}, "ignore holds the pattern '(a+)+$', which is too intricate to"),
    (COMPRESSED | {"ignore": ["re:" + ".*" * 20 + "x"]}, "which is too intricate to match in bounded time"),
    (COMPRESSED | {"ignore": ["re:" + "(a|a)" * 20 + "x"]}, "which is too intricate to match in bounded time"),
    (COMPRESSED | {"ignore": ["x" * 2000]}, "ignore holds a name of 2000 characters; at most 1000 are read"),
    (AWQ | {"modules_to_not_convert": ["a*" * 9]}, "modules_to_not_convert holds 'a*a*a*a*a*a*a*a*a*'; at most 5 wild"),
    (group(num_bits=3), "config_groups.group_0.weights.num_bits is 3; packed whole numbers"),
    (group(group_size=48, num_bits=4), "makes int4 by group of 48 with zero points in the format 'pack-quantized'"),
    (group(strategy="tensor"), "weights.strategy makes int4 by tensor with zero points in the format 'pack-quantized'"),
    (group(type="float"), "weights.strategy makes float4 by group of 32"),
    (COMPRESSED | {"format": "marlin-24"}, "in the format 'marlin-24', which is not supported; supported"),
    (
        COMPRESSED | {"config_groups": {name: {"targets": ["Linear"], "weights": INT4 | {"num_bits": bits}}
                                        for name, bits in (("a", 4), ("b", 8))}},
        "config_groups.b.targets holds 'Linear', as another group does",
    ),
    (MODELOPT | {"quant_algo": "W4A8_AWQ"}, "quant_algo is 'W4A8_AWQ'; supported are NVFP4, FP8"),
    (MODELOPT | {"group_size": 32}, "group_size is 32; NVFP4 has a scale for 16 numbers"),
    ({"quant_method": "modelopt"}, "quant_algo is missing"),
    ({"quant_method": "quark"}, "global_quant_config has no weight; it says how the weights are stored"),
    (QUARK | {"global_quant_config": {"weight": {"dtype": "int8"}}}, "weight.dtype is 'int8', per_group of 32; only"),
    (QUARK | {"layer_quant_config": {"x": {}}}, "layer_quant_config is not empty; layers with a quantisation of"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_honoured_is_refused_by_name(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(fields)
    assert sentence in caught.value.message
    assert caught.value.message.startswith("config.json: quantization_config.")
    assert caught.value.message.endswith(".")


def test_mlx_is_refused() -> None:
    with pytest.raises(ConfigError, match="quantization marks an MLX-quantised checkpoint, whose weights were changed"):
        ModelConfig.from_dict(text_only("qwen3", quantization={"group_size": 64, "bits": 4}))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 200) | st.sampled_from([10**400, 1e308, "", "re:(", "Linear", "int"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["group_0", "weights", "+:("]), inner),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_value_in_any_field_is_read_or_refused(data: st.DataObject) -> None:
    def changed(value: Any) -> Any:
        if not isinstance(value, dict) or data.draw(st.integers(0, 9)) == 0:
            return data.draw(VALUES)
        fields = dict(value)
        name = data.draw(st.sampled_from(sorted(fields))) if fields else "x"
        return fields | {name: changed(fields.get(name))}

    sort = data.draw(st.sampled_from([FP8, GPTQ, AWQ, COMPRESSED, MODELOPT, QUARK]))
    try:
        found = ModelConfig.from_dict(text_only("qwen3", quantization_config=changed(sort))).quantised
    except ConfigError as error:
        assert error.message.startswith("config.json: ")  # noqa: PT017  # either outcome is right, this is one of them
        return
    assert found is None or found.scheme_of("lm_head") is None or found.schemes
