"""Reading: one answer while it comes. Token events in, pieces out, and all that is known of the answer so far.

The only fold of events into text: a stream sends the pieces on, a whole answer is what the same pieces add up to, so
the two cannot differ. Knows no engine and no response format; whoever reads ``finish_reason`` aborts the generation
where it was a stop string that ended the answer.
"""

from __future__ import annotations

from collections.abc import Iterable

from qwench.engine.request import FinishReason, Reuse, SamplingParams, TokenEvent, TokenLogprob
from qwench.engine.thinking import Closing
from qwench.errors import EngineUnavailable
from qwench.text.stream import AnswerStream, Piece, join
from qwench.text.tokenizer import Tokenizer


class Reading:
    """``token_ids`` and ``logprobs`` go up to and with the token that completed a stop string.

    ``stop_reason`` is that string, or the id from ``stop_token_ids`` that ended the answer. ``untold`` are the
    log-probabilities of content tokens whose text has not come, at the end those that have none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        thinking_open: bool = False,
        split_thinking: bool = True,
    ) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob | None] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.untold: list[TokenLogprob] = []
        self.reuse: Reuse | None = None
        self.closed_by: Closing | None = None
        self.repeats = False
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._texts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self._stream = AnswerStream(
            tokenizer,
            stop=sampling.stop_strings,
            thinking_open=thinking_open,
            split_thinking=split_thinking,
            skip_special_tokens=sampling.skip_special_tokens,
            include_stop=sampling.include_stop_str_in_output,
        )

    @property
    def num_tokens(self) -> int:
        return self._stream.num_tokens

    @property
    def reasoning_tokens(self) -> int:
        """Those of the think block, its tags included."""
        return self._stream.reasoning_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed again."""
        return self.reuse.cached if self.reuse else 0

    @property
    def reasoning(self) -> str:
        return "".join(self._texts["reasoning"])

    @property
    def content(self) -> str:
        return "".join(self._texts["content"])

    def begin(self, token_ids: Iterable[int]) -> None:
        """The answer goes on from these, which the prompt holds already."""
        self._told(self._stream.push(token_ids))

    def take(self, event: TokenEvent) -> list[Piece]:
        """What ``event`` adds; nothing once the answer is over. Raises EngineUnavailable if the engine gave it up."""
        if event.finish_reason == "error":
            raise EngineUnavailable(f"the engine failed on this answer: {event.error or 'no reason given'}.")
        if self.finish_reason is not None:
            return []
        self.prompt_logprobs += event.prompt_logprobs
        self.reuse = event.reuse or self.reuse
        self.closed_by, self.repeats = event.closed_by or self.closed_by, event.repeats or self.repeats
        pieces: list[Piece] = []
        for at, token in enumerate(event.token_ids):  # the token that ends an answer has a log-probability too
            self._token(token, event.logprobs[at] if event.logprobs else None, pieces)
            if self._stream.stopped is not None:  # what was held back is (part of) the stop string
                self.finish_reason, self.stop_reason = "stop", self._stream.stopped
                self.untold.clear()
                return self._told(pieces)
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
            if event.stop_token_id in (self._sampling.stop_token_ids or ()):
                self.stop_reason = event.stop_token_id
            self._add(self._stream.finish(), pieces)
        return self._told(pieces)

    def _token(self, token: int, logprob: TokenLogprob | None, pieces: list[Piece]) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        before = self._stream.reasoning_tokens
        found = self._stream.push((token,))
        if logprob is not None and self._stream.reasoning_tokens == before and not self._is_border(token):
            self.untold.append(logprob)
        self._add(found, pieces)

    def _is_border(self, token: int) -> bool:
        """Whether ``token`` is line breaks between the reasoning and the content, which belong to neither."""
        if self._texts["content"] or not self._stream.reasoning_tokens:
            return False
        return not self._tokenizer.token_bytes(token).strip(b"\n")

    def _add(self, found: Iterable[Piece], pieces: list[Piece]) -> None:
        """Content brings the log-probabilities of the tokens whose text it completes."""
        for piece in found:
            if piece.kind == "content":
                piece = Piece(piece.kind, piece.text, tuple(self.untold))  # noqa: PLW2901
                self.untold.clear()
            join(pieces, piece)

    def _told(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            self._texts[piece.kind].append(piece.text)
        return pieces
