"""Detokeniser: token ids in any portions -> text in portions that concatenate to the full decode.

A byte-level token may end inside a character. Bytes that can still become a character wait; U+FFFD is written only
once it is certain that they cannot. Knows nothing of tags or stop strings.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from qwench.text.tokenizer import Tokenizer


class Detokenizer:
    """``push`` ids; ``finish`` where no character goes on, at the latest at the end."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that is certain after these ids."""
        skipped, token_bytes = self._skipped, self._tokenizer.token_bytes
        return self._decoder.decode(b"".join(token_bytes(number) for number in token_ids if number not in skipped))

    def finish(self) -> str:
        """What is left: U+FFFD if the last character never became complete."""
        return self._decoder.decode(b"", final=True)
