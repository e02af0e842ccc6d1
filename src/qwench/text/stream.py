"""AnswerStream: generated ids -> pieces of reasoning and content, with stop strings, in any portions.

The law: however the ids are cut into portions, the pieces of each kind concatenate to the same text. Three stages, each
holding back only what it cannot know yet: ids -> text (detok), text -> text before a stop string (StopFilter),
text -> reasoning | content (ThinkingSplitter). Only generated text is looked at, never the prompt.

Stop strings are searched in the whole output as the model wrote it, reasoning and tags included, before it is split:
that is what vLLM does and what a user who stops at ``</think>`` expects.
Knows nothing of the engine: whoever reads ``stopped`` ends the generation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from qwench.text.detok import Detokenizer
from qwench.text.tokenizer import Tokenizer

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"
TOOL_CALL = "<tool_call>"
PieceKind = Literal["reasoning", "content"]


@dataclass(frozen=True)
class Piece:
    """A stretch of the answer; never empty."""

    kind: PieceKind
    text: str


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
    START = "may still open with <think>"
    REASONING = "inside the think block"
    AFTER = "behind </think>, line breaks are dropped"
    CONTENT = "the answer"


class ThinkingSplitter:
    """Text -> pieces. ``thinking_open``: the prompt has already opened the think block.

    Line breaks at the borders of the block belong to the tags, as the template writes them, and are dropped. A
    ``<tool_call>`` inside an open block ends the reasoning and is itself content (the model forgets to close).
    ``opened`` tells that a block was found; ``close_offset`` is where in the text it ended, None while it is open.
    """

    def __init__(self, *, thinking_open: bool) -> None:
        self._thinking_open = thinking_open
        self._state = _State.START
        self._buffer = ""
        self._leading = True  # nothing of the reasoning was given out yet
        self._offset = 0  # of the start of the buffer in the whole text
        self.opened = thinking_open
        self.close_offset: int | None = None

    @property
    def in_content(self) -> bool:
        """Whether all that follows is content."""
        return self._state is _State.CONTENT

    def push(self, text: str) -> list[Piece]:
        if self.in_content:  # most of most answers
            return [Piece("content", text)] if text else []
        self._buffer += text
        pieces: list[Piece] = []
        state = None
        while state is not self._state:  # a change of state may make more of the buffer readable
            state = self._state
            if state is _State.START:
                self._open()
            elif state is _State.REASONING:
                self._reason(pieces)
            elif state is _State.AFTER:
                self._drop(len(self._buffer) - len(self._buffer.lstrip("\n")))
                self._state = _State.CONTENT if self._buffer else state
            else:
                _add(pieces, "content", self._drop(len(self._buffer)))
        return pieces

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._state is _State.REASONING or (self._state is _State.START and self._thinking_open):
            rest = self._drop(len(self._buffer))
            _add(pieces, "reasoning", rest.lstrip("\n") if self._leading else rest)
        elif self._state is _State.START:
            _add(pieces, "content", self._drop(len(self._buffer)))
        return pieces

    def _open(self) -> None:
        """Decide whether the output begins with <think>; white space may stand before it."""
        begin = self._buffer.lstrip()
        if begin.startswith(THINK_OPEN):
            self._drop(len(self._buffer) - len(begin) + len(THINK_OPEN))
            self.opened = True
            self._state = _State.REASONING
        elif not THINK_OPEN.startswith(begin):
            self._state = _State.REASONING if self._thinking_open else _State.CONTENT

    def _reason(self, pieces: list[Piece]) -> None:
        buffer = self._buffer
        hits = [(at, tag) for tag in (THINK_CLOSE, TOOL_CALL) if (at := buffer.find(tag)) >= 0]
        if hits:
            end, tag = min(hits)
        else:
            end, tag = len(buffer) - max(overlap(buffer, THINK_CLOSE), overlap(buffer, TOOL_CALL)), ""
        text = buffer[:end].rstrip("\n")  # the line breaks wait: they are the tag's if one follows
        self._drop(end if hits else len(text))
        if self._leading:
            text = text.lstrip("\n")
            self._leading = not text
        _add(pieces, "reasoning", text)
        if tag:
            self._drop(len(tag) if tag == THINK_CLOSE else 0)
            self.close_offset = self._offset
            self._state = _State.AFTER if tag == THINK_CLOSE else _State.CONTENT

    def _drop(self, count: int) -> str:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        self._offset += count
        return taken


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
    ) -> None:
        tags = (tokenizer.id_of(tag) for tag in (THINK_OPEN, THINK_CLOSE, TOOL_CALL))
        keep = frozenset(number for number in tags if number is not None) if split_thinking else frozenset()
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, keep=keep)
        self._stop_filter = StopFilter(stop, include_stop=include_stop)
        self._splitter = ThinkingSplitter(thinking_open=thinking_open) if split_thinking else None
        self._length = 0  # characters of text seen so far
        self._starts: list[int] = []  # that length before each id, kept while it may belong to the reasoning
        self._reasoning_tokens: int | None = None
        self.num_tokens = 0

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stop_filter.stopped

    @property
    def reasoning_tokens(self) -> int:
        if self._reasoning_tokens is not None:
            return self._reasoning_tokens
        return len(self._starts) if self._splitter is not None and self._splitter.opened else 0

    def push(self, token_ids: Iterable[int]) -> list[Piece]:
        pieces: list[Piece] = []
        for token_id in token_ids:
            if self.stopped is not None:
                break
            self.num_tokens += 1
            if self._splitter is not None and self._reasoning_tokens is None:
                self._starts.append(self._length)
            self._read(self._detokenizer.push((token_id,)), pieces)
        return pieces

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        self._read(self._detokenizer.finish(), pieces)
        self._split(self._stop_filter.finish(), pieces)
        if self._splitter is not None:
            for piece in self._splitter.finish():
                _add(pieces, piece.kind, piece.text)
        return pieces

    def _read(self, text: str, pieces: list[Piece]) -> None:
        self._length += len(text)
        self._split(self._stop_filter.push(text), pieces)

    def _split(self, text: str, pieces: list[Piece]) -> None:
        if self._splitter is None:
            _add(pieces, "content", text)
            return
        for piece in self._splitter.push(text):
            _add(pieces, piece.kind, piece.text)
        if self._reasoning_tokens is None and (self._splitter.in_content or self._splitter.close_offset is not None):
            self._reasoning_tokens = bisect_left(self._starts, self._splitter.close_offset or 0)
            self._starts.clear()


def overlap(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that is a proper beginning of ``tag``."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def _add(pieces: list[Piece], kind: PieceKind, text: str) -> None:
    """Append ``text``, joining it to the last piece where the kind is the same."""
    if not text:
        return
    if pieces and pieces[-1].kind == kind:
        text = pieces.pop().text + text
    pieces.append(Piece(kind, text))
