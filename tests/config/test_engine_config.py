"""EngineConfig refuses what it cannot honour, by the name of the option."""

from __future__ import annotations

from typing import Any

import pytest

from qwench.config import EngineConfig
from qwench.errors import UsageError


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "fp8"}, "dtype is 'fp8'; use auto, float32, bfloat16, float16."),
        ({"quantization": "Q4_K"}, "quantization is 'Q4_K'; did you mean q4?"),
        ({"quantization": "mxfp"}, "quantization is 'mxfp'; did you mean mxfp4?"),
        (
            {"quantization": "awq"},
            "quantization is 'awq'; use q8, q6, q5, q4, q3, q2, mxfp4, or leave it out.",
        ),
        ({"max_model_len": 0}, "max_model_len is 0; give a whole number of at least 1."),
        ({"max_num_seqs": -1}, "max_num_seqs is -1; give a whole number of at least 1."),
        ({"memory": 1.5}, "memory is 1.5; give a whole number of at least 1."),
        ({"page_size": 16}, "page_size is 16; give a multiple of 64: so many tokens are read together."),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8'; use auto or int8."),
        ({"page_size": True}, "page_size is True; give a whole number of at least 1."),
        ({"max_step_tokens": "512"}, "max_step_tokens is '512'; give a whole number of at least 1."),
        ({"tensor_parallel_size": 4}, "tensor_parallel_size is 4; several devices are not available yet, use 1."),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization is 1.1; give a number above 0, at most 1."),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization is nan; give a number above 0, at most 1."),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        EngineConfig(**options)
    assert caught.value.message == sentence
    assert caught.value.param == next(iter(options))


def test_the_defaults_are_accepted() -> None:
    config = EngineConfig()
    assert (config.model, config.device, config.dtype, config.page_size) == ("nano", "auto", "auto", 64)
