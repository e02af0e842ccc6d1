"""The shape of ``/v1/completions``: chunks of a stream, or one body, from the same deltas. Knows no HTTP."""

from __future__ import annotations

import math

from qwench.engine.request import TokenLogprob
from qwench.server.answer import Answer, Choice, Delta, Format, Head
from qwench.server.chat import LEAST_LOGPROB
from qwench.text.tokenizer import Tokenizer


def _likelihood(choice: Choice) -> float:
    """The mean log-probability of a choice's tokens; an answer that says nothing is the least likely."""
    known = [each.logprob for each in choice.reading.logprobs if each is not None]
    return sum(known) / len(known) if known else -math.inf


class _Logprobs:
    """OpenAI's four parallel lists of one choice; ``text_offset`` counts characters from the start of the text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0

    def columns(self, entries: list[tuple[int, TokenLogprob | None]]) -> dict[str, object]:
        """The lists of the next ``entries``: token ids with their log-probability (the first of a prompt has none)."""
        tokens, offsets, values, tops = [], [], [], []
        for token, logprob in entries:
            text = self._tokenizer.token_text(token)
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(text)
            values.append(None if logprob is None else max(logprob.logprob, LEAST_LOGPROB))
            tops.append(None if logprob is None else self._top(logprob))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _top(self, logprob: TokenLogprob) -> dict[str, float]:
        pairs = [*logprob.top, (logprob.token_id, logprob.logprob)]
        return {self._tokenizer.token_text(token): max(value, LEAST_LOGPROB) for token, value in pairs}


class CompletionFormat(Format):
    """Writes one answer to raw prompts."""

    def __init__(self, head: Head, answer: Answer, tokenizer: Tokenizer) -> None:
        self._head = head
        self._answer = answer
        self._ended = 0
        self._logprobs = [_Logprobs(tokenizer) for _ in answer.choices]
        self._deltas: list[list[Delta]] = [[] for _ in answer.choices]

    def chunks(self, delta: Delta) -> list[dict[str, object]]:
        """The one chunk that tells ``delta``."""
        chunk = self._envelope([self._choice(delta.index, [delta])])
        if self._answer.prepared.include_usage:
            chunk["usage"] = None  # the usage comes in a chunk of its own
        if delta.kind == "end":
            self._ended += 1
            if self._ended == len(self._answer.choices):
                chunk["timings"] = self._answer.timings()
        return [chunk]

    def closing(self) -> list[dict[str, object]]:
        """The usage chunk, when it was asked for."""
        if not self._answer.prepared.include_usage:
            return []
        return [{**self._envelope([]), "usage": self._answer.usage()}]

    def add(self, delta: Delta) -> None:
        self._deltas[delta.index].append(delta)

    def body(self) -> dict[str, object]:
        """The complete answer from all deltas added."""
        told = [self._choice(index, self._deltas[index]) for index in self._best()]
        choices = [{**choice, "index": index} for index, choice in enumerate(told)]
        return {**self._envelope(choices), "usage": self._answer.usage(), "timings": self._answer.timings()}

    def _best(self) -> list[int]:
        """The choices that are told: all, or of each prompt's those with the highest log-probability per token."""
        prepared, choices = self._answer.prepared, self._answer.choices
        if prepared.best is None:
            return list(range(len(choices)))
        told: list[int] = []
        for first in range(0, len(choices), prepared.sampling.n):
            drawn = range(first, first + prepared.sampling.n)
            told += sorted(drawn, key=lambda index: -_likelihood(choices[index]))[: prepared.best]
        return told

    def _choice(self, index: int, deltas: list[Delta]) -> dict[str, object]:
        entries = [entry for delta in deltas for entry in self._entries(index, delta)]
        return {
            "index": index,
            "text": "".join(delta.text for delta in deltas),
            "logprobs": self._logprobs[index].columns(entries) if entries else None,
            "finish_reason": deltas[-1].finish_reason,
        }

    def _entries(self, index: int, delta: Delta) -> list[tuple[int, TokenLogprob | None]]:
        if not self._answer.prepared.show_logprobs:
            return []
        entries: list[tuple[int, TokenLogprob | None]] = [(logprob.token_id, logprob) for logprob in delta.logprobs]
        if delta.kind == "echo" and self._answer.prepared.sampling.prompt_logprobs is not None:
            entries.insert(0, (self._answer.choices[index].prompt.token_ids[0], None))
        return entries

    def _envelope(self, choices: list[dict[str, object]]) -> dict[str, object]:
        head = self._head
        return {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
            "choices": choices,
        }
