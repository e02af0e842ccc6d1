"""AnswerStream: generated ids -> pieces of reasoning, content and tool calls, with stop strings, in any portions.

The law: however the ids are cut into portions, the pieces of each kind concatenate to the same text. Four stages, each
holding back only what it cannot know yet: ids -> text and tags (detok), these -> reasoning | content
(ThinkingSplitter), content -> content | calls where tools were offered (calls.py), content -> content before a stop
string (StopFilter). Only what was generated is looked at, never the prompt.

Stop strings are about the answer: neither what is thought before it nor the arguments of calls are searched. Where
nothing is split, as in raw completions, the whole output is searched as the model wrote it.
Knows nothing of the engine: whoever reads ``stopped`` ends the generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

from qwench.engine.request import TokenLogprob
from qwench.text.detok import Detokenizer
from qwench.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from qwench.text.calls import CallReader

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
TOOL_CALL, TOOL_CLOSE = "<tool_call>", "</tool_call>"
PieceKind = Literal["reasoning", "content", "tool_call"]


@dataclass(frozen=True)
class Call:
    """Which call a piece belongs to; ``index`` counts those of the answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Piece:
    """A stretch of the answer; never empty. Of a call, ``text`` is part of its arguments in JSON.

    ``logprobs`` are those of the tokens whose text it completes.
    """

    kind: PieceKind
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    call: Call | None = None


class StopFilter:
    """Lets text through up to the first stop string; holds back the shortest suffix that may begin one.

    First means the one that is complete first; of several that end together, the longest.
    """

    def __init__(self, stop: Sequence[str], *, include_stop: bool = False) -> None:
        self._stops = tuple(text for text in stop if text)
        self._include_stop = include_stop
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        hits = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if hits:
            end, start, self.stopped = min(hits)
            self._held = ""
            return text[: end if self._include_stop else start]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class _State(Enum):
    START = "white space so far; a <think> may follow"
    REASONING = "inside the think block"
    AFTER = "behind </think>, line breaks are dropped"
    CONTENT = "the answer"


class ThinkingSplitter:
    """Text and tags -> pieces. ``thinking_open``: the prompt has already opened the think block.

    Line breaks at the borders of the block belong to the tags, as the template writes them, and are dropped. A
    ``<tool_call>`` inside an open block ends the reasoning and is itself content (the model forgets to close). A tag is
    a token of its own; where its letters are spelled out they are text, as they are to the model.
    ``opened`` and ``closed`` tell how far the block has come.
    """

    def __init__(self, *, thinking_open: bool) -> None:
        self._state = _State.REASONING if thinking_open else _State.START
        self._held = ""  # white space that waits for what follows
        self._leading = True  # nothing of the reasoning was given out yet
        self.opened = thinking_open
        self.closed = False

    def push(self, text: str) -> list[Piece]:
        if self._state is _State.REASONING:
            return self._reason(text)
        if self._state is _State.AFTER:
            text = text.lstrip("\n")
            self._state = _State.CONTENT if text else _State.AFTER
        elif self._state is _State.START:
            text = self._held + text
            if not text.strip():
                self._held = text
                return []
            self._held, self._state = "", _State.CONTENT
        return [Piece("content", text)] if text else []

    def tag(self, tag: str) -> list[Piece]:
        """One of the three tags, as a token."""
        if self._state is _State.START and tag == THINK_OPEN:
            self._held, self._state, self.opened = "", _State.REASONING, True
            return []
        if self._state is not _State.REASONING:
            return self.push(tag)
        if tag == THINK_OPEN:  # said again at the beginning of a block that is open
            return [] if self._leading else self._reason(tag)
        self.closed, self._held = True, ""
        self._state = _State.AFTER if tag == THINK_CLOSE else _State.CONTENT
        return [] if tag == THINK_CLOSE else [Piece("content", tag)]

    def finish(self) -> list[Piece]:
        """What still waited: it belongs to no tag."""
        kind: PieceKind = "reasoning" if self._state is _State.REASONING else "content"
        return [Piece(kind, self._held)] if self._held else []

    def _reason(self, text: str) -> list[Piece]:
        text = self._held + text
        if self._leading:
            text = text.lstrip("\n")
            self._leading = not text
        told = text.rstrip("\n")
        self._held = text[len(told) :]  # the line breaks are the tag's if one follows
        return [Piece("reasoning", told)] if told else []


class AnswerStream:
    """The three stages together. After ``stopped`` is set, further ids are ignored and ``finish`` adds nothing of them.

    ``num_tokens`` counts the ids read, up to and with the one that completed a stop string; ``reasoning_tokens`` those
    of the think block, its closing tag included.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        thinking_open: bool = False,
        split_thinking: bool = True,
        skip_special_tokens: bool = True,
        include_stop: bool = False,
        calls: CallReader | None = None,
    ) -> None:
        tags = {tokenizer.id_of(tag): tag for tag in (THINK_OPEN, THINK_CLOSE, TOOL_CALL)} if split_thinking else {}
        if calls is not None:  # also where it is a special token, which would not be shown
            tags[tokenizer.id_of(TOOL_CLOSE)] = TOOL_CLOSE
        self._tags = {number: tag for number, tag in tags.items() if number is not None}
        self._calls = calls
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
        self._stop_filter = StopFilter(stop, include_stop=include_stop)
        self._splitter = ThinkingSplitter(thinking_open=thinking_open) if split_thinking else None
        self._reasoning_tokens: int | None = None  # once the block is closed
        self.num_tokens = 0

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stop_filter.stopped

    def give_up(self, *, final: bool) -> list[Piece]:
        """The call that was lost is content."""
        pieces: list[Piece] = []
        if self._calls is not None:
            self._tell(self._calls.give_up(final=final), pieces)
        if final:
            join(pieces, Piece("content", self._stop_filter.finish()))
        return pieces

    @property
    def is_over(self) -> bool:
        """Whether nothing that follows counts."""
        return self.stopped is not None or (self._calls is not None and self._calls.over)

    @property
    def reasoning_tokens(self) -> int:
        if self._reasoning_tokens is not None:
            return self._reasoning_tokens
        return self.num_tokens if self._splitter is not None and self._splitter.opened else 0

    def push(self, token_ids: Iterable[int]) -> list[Piece]:
        pieces: list[Piece] = []
        for token_id in token_ids:
            if self.is_over:
                break
            self.num_tokens += 1
            tag = self._tags.get(token_id)
            if tag is None or self._splitter is None:
                self._read(self._detokenizer.push((token_id,)), pieces)
                continue
            self._read(self._detokenizer.finish(), pieces)  # no character goes on behind a tag
            self._add(self._splitter.tag(tag), pieces)
            if self._splitter.closed and self._reasoning_tokens is None:
                self._reasoning_tokens = self.num_tokens - (tag == TOOL_CALL)
        return pieces

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        self._read(self._detokenizer.finish(), pieces)
        if self._splitter is not None:
            self._add(self._splitter.finish(), pieces)
        if self._calls is not None and self.stopped is None:
            self._tell(self._calls.finish(), pieces)
        join(pieces, Piece("content", self._stop_filter.finish()))
        return pieces

    def _read(self, text: str, pieces: list[Piece]) -> None:
        if self._splitter is not None:
            self._add(self._splitter.push(text), pieces)
        else:
            self._tell([Piece("content", text)], pieces)

    def _add(self, found: Iterable[Piece], pieces: list[Piece]) -> None:
        for piece in found:
            calls = self._calls if piece.kind == "content" and self.stopped is None else None
            self._tell([piece] if calls is None else calls.push(piece.text), pieces)

    def _tell(self, found: Iterable[Piece], pieces: list[Piece]) -> None:
        for piece in found:
            if piece.kind == "content":
                join(pieces, Piece("content", self._stop_filter.push(piece.text)))
            elif self.stopped is None:
                if piece.kind == "tool_call":
                    join(pieces, Piece("content", self._stop_filter.finish()))
                join(pieces, piece)


def overlap(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``tag``."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def join(pieces: list[Piece], piece: Piece) -> None:
    """Append ``piece`` unless it says nothing, as one with the last where the kind is the same."""
    if not piece.text:
        return
    if pieces and pieces[-1].kind == piece.kind and pieces[-1].call == piece.call:
        last = pieces.pop()
        piece = Piece(piece.kind, last.text + piece.text, last.logprobs + piece.logprobs, piece.call)
    pieces.append(piece)
