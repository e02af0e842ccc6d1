"""Reading: one answer while it comes. Token events in, pieces out, and all that is known of the answer so far.

The only fold of events into text: a stream sends the pieces on, a whole answer is what the same pieces add up to, so
the two cannot differ. Knows no engine and no response format; whoever reads ``finish_reason`` aborts the generation
where it was a stop string that ended the answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qwench.engine.request import FinishReason, Reuse, SamplingParams, TokenEvent, TokenLogprob
from qwench.engine.thinking import Closing
from qwench.errors import EngineUnavailable, GrammarTooComplex, NotFinite, QwenchError
from qwench.text.calls import CallReader
from qwench.text.stream import AnswerStream, Call, Piece, join
from qwench.text.tokenizer import Tokenizer
from qwench.text.tools import Tools

EndReason = FinishReason | Literal["tool_calls"]


@dataclass(frozen=True)
class ToolCall:
    """A call with all of its arguments, a JSON object."""

    id: str
    name: str
    arguments: str

    def document(self) -> dict[str, object]:
        """In OpenAI's form, which templates know too."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def named_failure(event: TokenEvent) -> QwenchError | None:
    """The failure of an answer as whoever asked is told it, where it has a name."""
    if event.failure == "grammar_too_complex":
        return GrammarTooComplex(f"{event.error}; ask for a simpler form.")
    if event.failure == "nan_logits":
        return NotFinite("The model gave no finite numbers for this answer; its weights may be damaged.")
    return None


class Reading:
    """``token_ids`` and ``logprobs`` go up to and with the token that completed a stop string.

    ``stop_reason`` is that string, or the id from ``stop_token_ids`` that ended the answer. ``untold`` are the
    log-probabilities of content tokens whose text has not come, at the end those that have none.

    With ``call_id``, the tag that begins a call, one call that cannot be read is ``lost`` instead of content: nothing
    more is told until whoever reads says ``write_again`` or ``give_up``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        *,
        thinking_open: bool = False,
        split_thinking: bool = True,
        tools: Tools | None = None,
        call_id: int | None = None,
    ) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob | None] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.untold: list[TokenLogprob] = []
        self.reuse: Reuse | None = None
        self.closed_by: Closing | None = None
        self.repeats = False
        self.finish_reason: EndReason | None = None
        self.stop_reason: int | str | None = None
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._texts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self._arguments: dict[Call, list[str]] = {}
        self._calls = None if tools is None else CallReader(tools.parameters, tools.most)
        self._call_id = call_id
        self._sure = (0, 0)  # tokens, and letters of content, behind which nothing was kept back
        self._last: TokenEvent | None = None  # the end that came while a call was lost
        if self._calls is not None:
            self._calls.again = call_id is not None
        self._stream = AnswerStream(
            tokenizer,
            stop=sampling.stop_strings,
            thinking_open=thinking_open,
            split_thinking=split_thinking,
            skip_special_tokens=sampling.skip_special_tokens,
            include_stop=sampling.include_stop_str_in_output,
            calls=self._calls,
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

    @property
    def calls(self) -> list[ToolCall]:
        return [ToolCall(call.id, call.name, "".join(parts)) for call, parts in self._arguments.items()]

    @property
    def warnings(self) -> Sequence[str]:
        """What was wrong with the calls."""
        return self._calls.warnings if self._calls else ()

    @property
    def lost(self) -> bool:
        """Whether a call cannot be read, and may be written again."""
        return self._calls is not None and self._calls.lost is not None

    def anew(self) -> list[int]:
        """The answer up to the lost call, and the tag that begins a call: what another try goes on from."""
        assert self._call_id is not None, "nothing can be lost without it"
        known, letters = self._sure
        return [*self.token_ids[:known], *self._tokenizer.encode_plain(self.content[letters:]), self._call_id]

    def write_again(self) -> None:
        """From now on events tell what comes behind ``anew``."""
        assert self._calls is not None, "nothing can be lost without them"
        token_ids = self.anew()
        self.logprobs = [*self.logprobs[: self._sure[0]], *[None] * (len(token_ids) - self._sure[0])]
        self.token_ids = token_ids
        self.untold.clear()
        self._last = None
        self._calls.begin_again()
        self._stream.push(token_ids[-1:])

    def give_up(self) -> list[Piece]:
        """The lost call is content after all; and the end, if that came."""
        last, self._last = self._last, None
        pieces = self._stream.give_up(final=last is not None)
        return self._told(pieces) if last is None else self._finish(last, pieces)

    def begin(self, token_ids: Iterable[int]) -> None:
        """The answer goes on from these, which the prompt holds already."""
        self._told(self._stream.push(token_ids))

    def take(self, event: TokenEvent) -> list[Piece]:
        """What ``event`` adds; nothing once the answer is over. Raises EngineUnavailable, or the named failure,
        if the engine gave it up.
        """
        if event.finish_reason == "error":
            told = f"the engine failed on this answer: {event.error or 'no reason given'}."
            raise named_failure(event) or EngineUnavailable(told)
        if self.finish_reason is not None:
            return []
        self.prompt_logprobs += event.prompt_logprobs
        self.reuse = self.reuse or event.reuse
        self.closed_by, self.repeats = event.closed_by or self.closed_by, event.repeats or self.repeats
        pieces: list[Piece] = []
        for at, token in enumerate(event.token_ids):  # the token that ends an answer has a log-probability too
            self._token(token, event.logprobs[at] if event.logprobs else None, pieces)
            if self._stream.is_over:  # what was held back is (part of) the stop string
                self.untold.clear()
                return self._end("stop", pieces)
        if event.finish_reason is None:
            return self._told(pieces)
        if self._calls is not None and event.finish_reason == "length":
            self._calls.again = False  # there is no room for another try
            self._add(self._stream.give_up(final=False) if self.lost else (), pieces)
        self._add(self._stream.finish(), pieces)
        if self.lost:
            self._last = event
            return self._told(pieces)
        return self._finish(event, pieces)

    def _finish(self, event: TokenEvent, pieces: list[Piece]) -> list[Piece]:
        if event.stop_token_id in (self._sampling.stop_token_ids or ()):
            self.stop_reason = event.stop_token_id
        assert event.finish_reason is not None
        return self._end(event.finish_reason, pieces)

    def _end(self, reason: FinishReason, pieces: list[Piece]) -> list[Piece]:
        told = self._told(pieces)
        self.stop_reason = self._stream.stopped or self.stop_reason
        self.finish_reason = "tool_calls" if reason == "stop" and self._arguments else reason
        return told

    def _token(self, token: int, logprob: TokenLogprob | None, pieces: list[Piece]) -> None:
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        before = self._stream.reasoning_tokens
        found = self._stream.push((token,))
        is_content = self._stream.reasoning_tokens == before and not (self._calls and self._calls.in_call)
        if logprob is not None and is_content and not self._is_border(token):
            self.untold.append(logprob)
        self._add(found, pieces)
        if self._calls is not None and not self._calls.holds:
            told = "".join(piece.text for piece in pieces if piece.kind == "content")
            self._sure = len(self.token_ids), len(self.content) + len(told)

    def _is_border(self, token: int) -> bool:
        """Whether ``token`` is line breaks between the reasoning and the content, which belong to neither."""
        if self._texts["content"] or not self._stream.reasoning_tokens:
            return False
        return not self._tokenizer.token_bytes(token).strip(b"\n")

    def _add(self, found: Iterable[Piece], pieces: list[Piece]) -> None:
        """Content brings the log-probabilities of the tokens whose text it completes; those of calls are not told."""
        for piece in found:
            if piece.kind == "content":
                piece = Piece(piece.kind, piece.text, tuple(self.untold))  # noqa: PLW2901
            if piece.kind != "reasoning":
                self.untold.clear()
            join(pieces, piece)

    def _told(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            if piece.call is not None:
                self._arguments.setdefault(piece.call, []).append(piece.text)
            else:
                self._texts[piece.kind].append(piece.text)
        return pieces
