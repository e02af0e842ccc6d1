"""Fill in the middle: what stands before and behind a gap, as the prompt from which Qwen's models learnt to fill it.

The prompt is made of the model's own tokens; what looks like them in the text around the gap stays text. What fills a
gap never thinks, and is over where the model would begin another file or gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwench.engine.request import SamplingParams
from qwench.errors import RequestError
from qwench.text.stream import THINK_OPEN
from qwench.text.tokenizer import Tokenizer

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
ENDS = (PREFIX, SUFFIX, MIDDLE, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
NEVER = -100.0  # as a bias


def infill(before: str | Sequence[int], behind: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The prompt. Raises RequestError for a model that has no such tokens."""
    tags = [tokenizer.id_of(tag) for tag in (PREFIX, SUFFIX, MIDDLE)]
    prefix, suffix, middle = (-1 if tag is None else tag for tag in tags)
    if None in tags:
        raise RequestError(f"suffix cannot be used: this model has no {PREFIX} token; leave it out.", param="suffix")
    known = tokenizer.encode_plain(before) if isinstance(before, str) else before
    return (prefix, *known, suffix, *tokenizer.encode_plain(behind), middle)


def infilling(sampling: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """``sampling`` of what fills a gap."""
    ends = [number for number in map(tokenizer.id_of, ENDS) if number is not None]
    think = tokenizer.id_of(THINK_OPEN)
    bias = {} if think is None else {think: NEVER}
    return replace(
        sampling,
        stop_token_ids=[*(sampling.stop_token_ids or ()), *ends],
        logit_bias={**(sampling.logit_bias or {}), **bias},
    )


def can_infill(tokenizer: Tokenizer) -> bool:
    """Whether a model has the tokens."""
    return None not in map(tokenizer.id_of, (PREFIX, SUFFIX, MIDDLE))
