"""config.json -> ModelConfig: every accepted form against transformers' own reading, every refusal by its sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwench.config import ModelConfig, YarnConfig
from qwench.errors import ConfigError

DENSE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}
MOE = DENSE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
BASES = {
    "qwen3": DENSE,
    "qwen3_moe": MOE,
    "qwen3_5_text": DENSE,
    "qwen3_5_moe_text": MOE | {"shared_expert_intermediate_size": 20},
}


def text_only(model_type: str, **fields: object) -> dict[str, Any]:
    return BASES[model_type] | {"model_type": model_type} | fields


def wrapper(model_type: str, top: dict[str, Any] | None = None, **fields: object) -> dict[str, Any]:
    return {"model_type": model_type, "text_config": text_only(f"{model_type}_text", **fields)} | (top or {})


def without(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key != name}


def reference(raw: dict[str, Any]) -> Any:
    """transformers' configuration object of the text model."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[raw["model_type"]](**without(json.loads(json.dumps(raw)), "model_type"))
    return config.get_text_config()


ACCEPTED = [
    *(text_only(kind) for kind in BASES),
    *(text_only(kind, head_dim=16, rms_norm_eps=1e-5, max_position_embeddings=512) for kind in BASES),
    *(text_only(kind, tie_word_embeddings=True, eos_token_id=[3, 1]) for kind in BASES),
    text_only("qwen3", rope_theta=1e6, rope_scaling=None),
    text_only("qwen3", rope_theta=1e6, rope_scaling={"rope_type": "yarn", "factor": 4.0}),
    text_only("qwen3", rope_parameters={"rope_type": "default", "rope_theta": 5e6}),
    text_only("qwen3", num_key_value_heads=None),
    text_only("qwen3_moe", mlp_only_layers=[1, 3], norm_topk_prob=True),
    text_only("qwen3_moe", decoder_sparse_step=2),
    without(text_only("qwen3_moe", num_local_experts=4), "num_experts"),
    text_only("qwen3_5_text", full_attention_interval=2),
    text_only("qwen3_5_text", layer_types=["full_attention", "linear_attention"] * 2),
    text_only("qwen3_5_text", linear_num_key_heads=3, linear_num_value_heads=6, linear_conv_kernel_dim=2),
    text_only("qwen3_5_text", rope_theta=1e7, partial_rotary_factor=0.5),
    text_only(
        "qwen3_5_text", rope_parameters={"rope_theta": 1e7, "partial_rotary_factor": 0.5, "rope_type": "default"}
    ),
    wrapper("qwen3_5"),
    wrapper("qwen3_5_moe", shared_expert_intermediate_size=28),
]


@pytest.mark.parametrize("raw", ACCEPTED, ids=range(len(ACCEPTED)))
def test_every_form_reads_as_in_transformers(raw: dict[str, Any]) -> None:
    ours, theirs = ModelConfig.from_dict(raw), reference(raw)
    rope = theirs.rope_parameters
    assert ours.layer_types == tuple(getattr(theirs, "layer_types", None) or ["full_attention"] * 4)
    head_dim = getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert (ours.num_heads, ours.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert ours.head_dim == head_dim
    assert (ours.rms_norm_eps, ours.tie_embeddings) == (theirs.rms_norm_eps, theirs.tie_word_embeddings)
    assert ours.rope.theta == rope["rope_theta"]
    assert ours.rope.rotary_dim == int(head_dim * rope.get("partial_rotary_factor", 1.0))
    eos = theirs.eos_token_id
    assert ours.eos_token_ids == tuple(eos if isinstance(eos, list) else [] if eos is None else [eos])
    if ours.delta is not None:
        assert (ours.delta.num_key_heads, ours.delta.num_value_heads, ours.delta.conv_kernel) == (
            theirs.linear_num_key_heads,
            theirs.linear_num_value_heads,
            theirs.linear_conv_kernel_dim,
        )
        assert ours.delta.key_head_dim == theirs.linear_key_head_dim
        assert ours.delta.value_head_dim == theirs.linear_value_head_dim
    if ours.moe is not None:
        assert ours.moe.num_experts == theirs.num_experts
        assert ours.moe.experts_per_token == theirs.num_experts_per_tok
        assert ours.moe.intermediate_size == theirs.moe_intermediate_size
        assert ours.moe.shared_intermediate_size == getattr(theirs, "shared_expert_intermediate_size", 0)
        assert ours.moe.normalise_top_k == getattr(theirs, "norm_topk_prob", True)


@pytest.mark.parametrize(
    ("fields", "sparse"),
    [
        ({}, (True, True, True, True)),
        ({"mlp_only_layers": [1, 3]}, (True, False, True, False)),
        ({"decoder_sparse_step": 2}, (False, True, False, True)),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, (False, False, False, True)),
    ],
)
def test_which_layers_of_qwen3_moe_have_experts(fields: dict[str, Any], sparse: tuple[bool, ...]) -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**MOE, **fields))
    assert tuple(hasattr(layer.mlp, "experts") for layer in model.model.layers) == sparse
    assert ModelConfig.from_dict(text_only("qwen3_moe", **fields)).sparse_layers == sparse


YARN = [
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    {"type": "yarn", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", "factor": 8.0, "mscale": 1.5, "mscale_all_dim": 0.5},
]


@pytest.mark.parametrize("yarn", YARN, ids=range(len(YARN)))
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_yarn_reads_as_in_transformers(yarn: dict[str, Any], field: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    raw = text_only("qwen3", rope_theta=1e6, max_position_embeddings=1024, **{field: yarn})
    _, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](reference(raw), device="cpu")
    original = yarn.get("original_max_position_embeddings", 1024)
    config = ModelConfig.from_dict(raw)
    assert config.rope.yarn == YarnConfig(
        factor=yarn["factor"],
        original_max_positions=original,
        beta_fast=yarn.get("beta_fast", 32.0),
        beta_slow=yarn.get("beta_slow", 1.0),
        attention_factor=pytest.approx(attention_factor, abs=1e-12),  # type: ignore[arg-type]  # compares with ==
        truncate=yarn.get("truncate", True),
    )
    assert config.max_positions == max(1024, int(original * yarn["factor"]))


def test_published_yarn_factor_of_qwen35() -> None:
    rope = {"rope_type": "yarn", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [11, 11, 10]}
    rope |= {"factor": 4.0, "original_max_position_embeddings": 262144}
    config = ModelConfig.from_dict(wrapper("qwen3_5", max_position_embeddings=262144, rope_parameters=rope))
    assert config.rope.yarn is not None
    assert math.isclose(config.rope.yarn.attention_factor, 1.138629, abs_tol=1e-6)
    assert config.rope.rotary_dim == 64
    assert config.max_positions == 1048576


def test_a_wrapper_brings_its_own_facts() -> None:
    vision = {"depth": 3, "hidden_size": 64, "out_hidden_size": 32, "patch_size": 14}
    top = {"vision_config": vision, "image_token_id": 56, "video_token_id": 57, "tie_word_embeddings": True}
    config = ModelConfig.from_dict(wrapper("qwen3_5", top, mtp_num_hidden_layers=1, dtype="bfloat16"))
    assert config.vision is not None
    assert (config.vision.depth, config.vision.patch_size, config.vision.num_heads) == (3, 14, 16)
    assert (config.image_token_id, config.video_token_id) == (56, 57)
    assert (config.tie_embeddings, config.num_mtp_layers, config.dtype) == (True, 1, "bfloat16")
    assert config.attention_gate
    assert config.zero_centred_norms
    assert config.rope.mrope_section == (11, 11, 10)


def test_the_wrapper_decides_whether_the_head_is_tied() -> None:
    assert ModelConfig.from_dict(wrapper("qwen3_5", tie_word_embeddings=True)).tie_embeddings
    top = {"tie_word_embeddings": False}
    assert not ModelConfig.from_dict(wrapper("qwen3_5", top, tie_word_embeddings=True)).tie_embeddings


def test_end_ids_are_joined_from_all_places(tmp_path: Path) -> None:
    raw = wrapper("qwen3_5", {"eos_token_id": 5}, eos_token_id=7)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (5, 7)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    assert ModelConfig.from_folder(tmp_path).eos_token_ids == (9, 7, 5)


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [({"torch_dtype": "float16"}, "float16"), ({"dtype": "bfloat16"}, "bfloat16"), ({}, "float32")],
)
def test_dtype_has_two_names_and_a_lossless_default(fields: dict[str, str], dtype: str) -> None:
    assert ModelConfig.from_dict(text_only("qwen3", **fields)).dtype == dtype


NEEDED = {
    "qwen3": ["hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "intermediate_size"],
    "qwen3_5_moe_text": [
        *("num_key_value_heads", "num_experts", "num_experts_per_tok", "moe_intermediate_size"),
        "shared_expert_intermediate_size",
    ],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NEEDED.items() for name in names])
def test_a_needed_field_is_named_with_its_file(kind: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(without(text_only(kind), name), "some/config.json")
    assert caught.value.message == f"some/config.json: {name} is missing; the model cannot be built without it."
    assert caught.value.param == name


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "config.json: model_type is missing"),
    (text_only("qwen3") | {"model_type": "qwen3_5_mo"}, "is 'qwen3_5_mo', which is not known; known are qwen3, "),
    (text_only("qwen3") | {"model_type": "qwen3_5_mo"}, "the nearest is qwen3_5_moe."),
    (text_only("qwen3", hidden_size=0), "hidden_size is 0; it must be a whole number from 1 to"),
    (text_only("qwen3", hidden_size=-4), "hidden_size is -4; it must be a whole number"),
    (text_only("qwen3", hidden_size="32"), "hidden_size is '32'; it must be a whole number"),
    (text_only("qwen3", hidden_size=True), "hidden_size is True; it must be a whole number"),
    (text_only("qwen3", hidden_size=32.5), "hidden_size is 32.5; it must be a whole number"),
    (text_only("qwen3", num_hidden_layers=10**9), "num_hidden_layers is 1000000000; it must be a whole number from 1"),
    (text_only("qwen3", num_key_value_heads=3), "num_key_value_heads is 3; it must divide num_attention_heads (4)"),
    (text_only("qwen3", rms_norm_eps=0), "rms_norm_eps is 0; it must be a number above 0"),
    (text_only("qwen3", rms_norm_eps=float("nan")), "rms_norm_eps is nan; it must be a number above 0"),
    (text_only("qwen3", tie_word_embeddings="yes"), "tie_word_embeddings is 'yes'; it must be true or false"),
    (text_only("qwen3", attention_bias=True), "attention_bias is true; projections with a bias are not supported"),
    (text_only("qwen3", use_sliding_window=True), "use_sliding_window is true; sliding-window attention is not"),
    (text_only("qwen3", layer_types=["sliding_attention"] * 4), "layer_types[0] is 'sliding_attention'; supported"),
    (text_only("qwen3", layer_types=["full_attention"]), "layer_types has 1 entries; num_hidden_layers is 4"),
    (text_only("qwen3", layer_types="full"), "layer_types has 'full' entries"),
    (text_only("qwen3_5_text", layer_types=["full_attention", "mamba"] * 2), "layer_types[1] is 'mamba'; supported"),
    (text_only("qwen3", hidden_act="gelu"), "hidden_act is 'gelu'; only 'silu' is supported"),
    (text_only("qwen3", hidden_act=1), "hidden_act is 1; it must be a string"),
    (text_only("qwen3", eos_token_id=64), "eos_token_id holds 64; ids are whole numbers below 64 (vocab_size)"),
    (text_only("qwen3", eos_token_id="<end>"), "eos_token_id holds '<end>'; ids are whole numbers"),
    (text_only("qwen3", dtype="int8"), "dtype is 'int8'; supported are float32, bfloat16, float16"),
    (text_only("qwen3_moe", num_experts_per_tok=5), "num_experts_per_tok is 5, more than num_experts (4)"),
    (text_only("qwen3_moe", mlp_only_layers="1"), "mlp_only_layers is '1'; it must be a list of whole numbers"),
    (text_only("qwen3_5_moe_text", mlp_only_layers=[1]), "mlp_only_layers is [1]; every layer of this model type"),
    (text_only("qwen3_5_text", attn_output_gate=False), "attn_output_gate is false; Qwen3.5 attention always has"),
    (text_only("qwen3_5_text", output_gate_type="sigmoid"), "output_gate_type is 'sigmoid'; only 'swish' is supported"),
    (
        text_only("qwen3_5_text", linear_num_key_heads=3),
        "linear_num_value_heads is 32, not a multiple of linear_num_key",
    ),
    (
        text_only("qwen3_5_text", linear_conv_kernel_dim=1),
        "linear_conv_kernel_dim is 1; it must be a whole number from 2",
    ),
    (
        text_only("qwen3", rope_scaling={"rope_type": "linear", "factor": 2.0}),
        "rope_scaling.rope_type is 'linear'; supp",
    ),
    (text_only("qwen3", rms_norm_eps=10**400), "; it must be a number above 0 and at most 1e+15"),
    (text_only("qwen3", rope_theta=float("inf")), "rope_theta is inf; it must be a number above 1 and at most 1e+15"),
    (text_only("qwen3", rope_theta=1), "rope_theta is 1; it must be a number above 1"),
    (text_only("qwen3", rope_parameters={"rope_theta": 0.5}), "rope_parameters.rope_theta is 0.5; it must be a number"),
    (text_only("qwen3_5_text", partial_rotary_factor=1e308), "partial_rotary_factor is 1e+308; it must be a number"),
    (text_only("qwen3", rope_scaling={"rope_type": "yarn", "factor": 1e308}), "factor is 1e+308; it must be a number"),
    (text_only("qwen3", rope_scaling={"rope_type": "yarn"}), "rope_scaling.factor is missing"),
    (text_only("qwen3", rope_scaling={"rope_type": "yarn", "factor": 0.5}), "rope_scaling.factor is 0.5; YaRN needs"),
    (
        text_only("qwen3", rope_parameters={"rope_theta": 1e6, "low_freq_factor": 1}),
        "rope_parameters.low_freq_factor is",
    ),
    (
        text_only("qwen3", rope_theta=1e4, rope_parameters={"rope_theta": 1e6}),
        "rope_theta is 10000.0, but rope_parameters.",
    ),
    (text_only("qwen3", rope_parameters={"rope_theta": 1}, rope_scaling={"type": "yarn"}), "rope_scaling differs from"),
    (text_only("qwen3", rope_parameters={"partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5; Qwen3 rotates"),
    (text_only("qwen3", rope_parameters=[1]), "rope_parameters is [1]; it must be a JSON object"),
    (text_only("qwen3_5_text", head_dim=6), "partial_rotary_factor is 0.25; with head_dim 6 it rotates 1 values"),
    (text_only("qwen3_5_text", rope_parameters={"mrope_section": [3, 3, 3]}), "mrope_section is [3, 3, 3]; it must be"),
    (text_only("qwen3_5_text", rope_parameters={"mrope_interleaved": False}), "mrope_interleaved is false; Qwen3.5"),
    (wrapper("qwen3_5", hidden_size=None), "text_config.hidden_size is missing"),
    (wrapper("qwen3_5", {"text_config": text_only("qwen3")}), "text_config.model_type is 'qwen3'; inside 'qwen3_5' it"),
    (wrapper("qwen3_5", {"text_config": 3}), "text_config is 3; it must be a JSON object"),
    (wrapper("qwen3_5", {"vision_config": {"depth": 0}}), "vision_config.depth is 0; it must be a whole number"),
    (
        wrapper("qwen3_5", {"vision_config": {"hidden_act": "relu"}}),
        "vision_config.hidden_act is 'relu'; only 'gelu_py",
    ),
    (wrapper("qwen3_5", {"vision_config": {"deepstack_visual_indexes": [3]}}), "deepstack_visual_indexes is [3]; pict"),
    (wrapper("qwen3_5", {"vision_config": {"num_heads": 5}}), "vision_config.hidden_size is 1152; 5 heads must divide"),
    (wrapper("qwen3_5", {"vision_config": {"num_position_embeddings": 50}}), "num_position_embeddings is 50, which is"),
    (
        wrapper("qwen3_5", {"vision_config": {"out_hidden_size": 33}}),
        "out_hidden_size is 33; the language model's hidd",
    ),
    ({"model_type": "qwen3", "text_config": DENSE}, "text_config is present, but model_type 'qwen3' has its fields at"),
]


@pytest.mark.parametrize(("raw", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_honoured_is_refused_by_name(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(raw)
    assert sentence in caught.value.message
    assert caught.value.message.startswith("config.json: ")
    assert caught.value.message.endswith(".")


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.sampled_from([10**400, 2**31, 1e308, -0.5, 5e-324, "", "yarn"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["factor", "rope_type"]), inner),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_value_in_any_field_is_read_or_refused(data: st.DataObject) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "mrope_section": [11, 11, 10], "beta_fast": 32, "rope_theta": 1e7}
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    raw = wrapper("qwen3_5_moe", {"vision_config": {"out_hidden_size": 32}, "quantization_config": quantised})
    raw["text_config"] |= {"rope_parameters": rope, "layer_types": ["full_attention"] * 4, "eos_token_id": [1, 2]}
    raw["text_config"] |= dict.fromkeys(("head_dim", "linear_num_value_heads", "hidden_act", "dtype", "rope_scaling"))
    sections = [raw, raw["text_config"], raw["vision_config"], raw["quantization_config"], rope]
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from(sections))
        section[data.draw(st.sampled_from(sorted(section)))] = data.draw(JSON_VALUES)
    try:
        config = ModelConfig.from_dict(raw)
    except ConfigError as error:
        assert error.message.startswith("config.json: ")  # noqa: PT017  # either outcome is right, this is one of them
        return
    assert config.num_layers == len(config.sparse_layers) == 4 or raw["text_config"]["num_hidden_layers"] != 4
    assert config.rope.rotary_dim % 2 == 0


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not valid JSON"),
        (b'{"model_type": "qwen3"', "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1, 2]", "holds list where a JSON object is expected"),
    ],
)
def test_a_damaged_side_file_is_named(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(text_only("qwen3")))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_folder(tmp_path)
    assert f"{tmp_path / name} {sentence}" in caught.value.message


def test_a_folder_without_config_says_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; the folder must hold a checkpoint in Hugging Face layout"):
        ModelConfig.from_folder(tmp_path)
