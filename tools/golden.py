"""Writes the golden checkpoints: tiny random models by transformers with their logits and greedy ids.

    .venv/bin/python tools/golden.py            writes tests/golden/, versions inside

Parity tests draw fresh models and need transformers at test time; these files stay, so that a new version of
transformers or torch that computes something else is noticed. Run it again only when that is understood.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.oracle import BASE35, DELTA, EXPERTS35, VISION, VOCABULARY, build_model  # noqa: E402 - needs the path above

SMALL = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
ROPE = {
    "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
    "mrope_section": [2, 1, 1],
}  # fmt: skip
TEXT = {**BASE35, **DELTA, **SMALL, "rope_parameters": ROPE}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dense": (
        "Qwen3_5Config",
        "Qwen3_5ForConditionalGeneration",
        {
            "text_config": {**TEXT, "intermediate_size": 80, "tie_word_embeddings": True},
            "vision_config": {**VISION, "depth": 1, "out_hidden_size": 48},
            "tie_word_embeddings": True,
        },
    ),
    "moe": (
        "Qwen3_5MoeTextConfig",
        "Qwen3_5MoeForCausalLM",
        {**TEXT, **EXPERTS35, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 32},
    ),
}
PROMPT_LENGTH, ANSWER_LENGTH, SEED = 90, 40, 35


def main() -> None:
    for name, recipe in MODELS.items():
        folder = ROOT / "tests" / "golden" / name
        model = build_model(*recipe, seed=SEED).bfloat16()  # what is stored is what is computed with
        model.save_pretrained(folder)
        logits, answer, prompt = run(model.float())
        save_file({"logits": logits}, folder / "golden.safetensors")
        facts = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "seed": SEED,
            "prompt": prompt,
            "greedy": answer,
        }
        (folder / "golden.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


@torch.inference_mode()
def run(model: Any) -> tuple[torch.Tensor, list[int], list[int]]:
    """Logits [n, V] of a prompt in fp32, the greedy answer, and the prompt."""
    generator = torch.Generator().manual_seed(SEED)
    prompt = torch.randint(0, VOCABULARY, (1, PROMPT_LENGTH), generator=generator)
    logits = model(input_ids=prompt).logits[0]
    ids = prompt
    for _ in range(ANSWER_LENGTH):
        ids = torch.cat((ids, model(input_ids=ids).logits[:, -1:].argmax(-1)), dim=1)
    return logits.contiguous(), ids[0, PROMPT_LENGTH:].tolist(), prompt[0].tolist()


if __name__ == "__main__":
    main()
