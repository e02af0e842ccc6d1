"""Trains the model's own byte-level BPE and writes its files; the 33 added tokens are Qwen3.5's, in Qwen3.5's order.

Knows how text is split, not what the text says: the corpus is handed in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ADDED = tuple(
    """
    <|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|>
    <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|>
    <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call>
    </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|>
    <|repo_name|> <|file_sep|> <tool_response> </tool_response> <think>
    </think> <|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos>
    <tts_text_eod> <tts_text_bos_single> <|audio_pad|>
    """.split()
)
# Qwen3.5 keeps these in decoded text even when special tokens are skipped.
PLAIN = {"<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"}
PLAIN |= {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"}


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Added tokens never reach BPE at run time, so they must not shape its merges either."""
    pattern = re.compile("|".join(re.escape(token) for token in ADDED))
    for text in texts:
        yield from (piece for piece in pattern.split(text) if piece)


def train(corpus: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of exactly `size` ids, the added tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(ADDED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(_pieces(corpus), trainer)
    if tokenizer.get_vocab_size() != size - len(ADDED):
        raise ValueError(f"the corpus gives only {tokenizer.get_vocab_size()} of {size - len(ADDED)} tokens")
    tokenizer.add_tokens([AddedToken(token, special=token not in PLAIN, normalized=False) for token in ADDED])
    return tokenizer


def settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json: the added tokens by id, and which of them end, pad and mark."""
    decoder = {}
    for token in ADDED:
        decoder[str(tokenizer.token_to_id(token))] = {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token not in PLAIN,
        }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "image_token": "<|image_pad|>",
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2TokenizerFast",
        "unk_token": None,
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }


def save(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings(tokenizer), indent=2) + "\n", encoding="utf-8")
