"""Tokenizer, chat template and sampling advice out of a GGUF file's metadata, as the folder's files would give them.

The file names its pre-tokeniser instead of holding it, so the patterns of the Qwen line stand here. Like the original
tokenizers, and unlike some programs that read GGUF, text is brought into Unicode's normal form C first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from qwench.config import VisionConfig
from qwench.gguf.file import GgufFile
from qwench.gguf.metadata import Metadata
from qwench.media.settings import VisionSettings
from qwench.text.chat import SPECIAL_TOKENS, TURN_END, ChatTemplate
from qwench.text.tokenizer import Tokenizer

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, KINDS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
TEMPLATE = "tokenizer.chat_template"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # what a token is

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS: Mapping[str, str] = MappingProxyType({"qwen2": QWEN2, "deepseek-r1-qwen": QWEN2, "qwen35": QWEN35})

SAMPLING: Mapping[str, str] = MappingProxyType(
    {
        "temperature": "general.sampling.temp",
        "top_p": "general.sampling.top_p",
        "top_k": "general.sampling.top_k",
        "min_p": "general.sampling.min_p",
        "repetition_penalty": "general.sampling.penalty_repeat",
    }
)


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer in ``file``. Raises ConfigError naming key and file."""
    data = Metadata(file)
    if (model := data.text(MODEL)) != "gpt2":
        raise data.error(MODEL, f"is {model!r:.80}; Qwen3 and Qwen3.5 have byte-level BPE, which is called 'gpt2'")
    if (pre := data.text(PRE)) not in PATTERNS:
        raise data.error(PRE, f"is {pre!r:.80}; known are {', '.join(PATTERNS)}")
    vocabulary, added = _vocabulary(data)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=_merges(data, vocabulary)))
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERNS[pre]), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([token for token in added if token.special])
    backend.add_tokens([token for token in added if not token.special])
    return Tokenizer(backend, size=1 + max(vocabulary.values(), default=-1))


def _vocabulary(data: Metadata) -> tuple[dict[str, int], list[AddedToken]]:
    """Ids of all tokens in use, and those among them that are matched in a text as a whole."""
    tokens, kinds = data.strings(TOKENS), data.wholes(KINDS)
    if len(kinds) != len(tokens):
        raise data.error(KINDS, f"has {len(kinds)} items for {len(tokens)} tokens")
    vocabulary: dict[str, int] = {}
    added: list[AddedToken] = []
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if not NORMAL <= kind <= BYTE:
            raise data.error(KINDS, f"holds the unknown kind {kind} at index {number}")
        if kind == UNUSED:  # rows that pad the embedding
            continue
        if not token or token in vocabulary:
            problem = "is empty" if not token else f"repeats token {vocabulary[token]}"
            raise data.error(TOKENS, f"holds a token that {problem}, at index {number}")
        vocabulary[token] = number
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            added.append(AddedToken(token, special=kind != USER_DEFINED, normalized=False))
    return vocabulary, added


def _merges(data: Metadata, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for index, merge in enumerate(data.strings(MERGES)):
        first, space, second = merge.partition(" ")
        if not space or first not in vocabulary or second not in vocabulary or first + second not in vocabulary:
            raise data.error(MERGES, f"holds {merge!r:.80} at index {index}, which is not a merge of two known tokens")
        merges.append((first, second))
    return merges


def gguf_template(file: GgufFile, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The chat template in ``file``, if there is one. Raises TemplateError or ConfigError."""
    data = Metadata(file)
    if not data.has(TEMPLATE):
        return None
    variables = {}
    for name in SPECIAL_TOKENS:
        key = "tokenizer.ggml." + {"unk_token": "unknown_token", "pad_token": "padding_token"}.get(name, name) + "_id"
        if data.has(key):
            variables[name] = tokenizer.token_text(data.whole(key, minimum=0))
    if tokenizer.id_of(TURN_END) is not None:
        variables.setdefault("eos_token", TURN_END)
    return ChatTemplate(data.text(TEMPLATE), variables=variables, origin=f"{file.path}: {TEMPLATE}")


def gguf_sampling(file: GgufFile) -> dict[str, float]:
    """The sampling that the file recommends, by our names."""
    data = Metadata(file)
    given = {name: data.real(key, above=-1) for name, key in SAMPLING.items() if data.has(key)}
    return {name: int(value) if name == "top_k" else value for name, value in given.items()}


def gguf_vision(projector: GgufFile, vision: VisionConfig) -> VisionSettings:
    """What pictures have to be like; of how many pixels these files say nothing, so that is as published.

    Raises ConfigError.
    """
    data, found = Metadata(projector), VisionSettings.of(vision)
    return replace(found, mean=_triple(data, "mean", found.mean), std=_triple(data, "std", found.std))


def _triple(data: Metadata, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    if not data.has(key := f"clip.vision.image_{name}"):
        return default
    found = tuple(data.reals(key))
    if len(found) != 3 or (name == "std" and 0 in found):
        raise data.error(key, "must be three numbers, of which none divides by 0")
    return found
