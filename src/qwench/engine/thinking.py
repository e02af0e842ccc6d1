"""One request's thinking as a state machine over token ids: when it is closed for the model, and with which tokens.

Pure: a drawn token in, the tokens that become known out. Knows neither torch nor text nor a clock; what the ids mean
comes with the rules, which the text layer writes.

    MAY_OPEN --open--> THINKING --close, or we close it--> ANSWER
        \\------------------any other text----------------/

Three promises, whatever the model draws. Thinking takes at most ``budget + allowance`` tokens. It ends early enough
to leave a share of the answer's tokens. And an answer does not end before it has said something: until then the ids
that would end it are banned, as are blank ones after a few and on the last token there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from qwench.engine.loops import LoopDetector

Closing = Literal["model", "tool_call", "soft", "budget", "reserve", "loop", "control", "end_of_turn"]

TOP_RANK = 3  # in the soft window the model's wish to close counts from this rank on
RESERVE_SHARE, MOST_RESERVED = 4, 4096  # a quarter of the answer's tokens is kept for what follows the thinking
MAX_BLANKS = 4  # blank tokens at the beginning of an answer; a model that draws more is brought to speak


@dataclass(frozen=True)
class ThinkingRules:
    """What a request's thinking is held to.

    ``sentence`` is what is written when thinking is cut, ``bare`` when the model was about to end it: both hold
    ``close_id`` once. ``budget`` None does not bound. ``open``: the prompt has opened the block; ``may_open``: the
    model may. ``begun``: the answer began in the prompt, so it may end at once. Without ``close_id`` nobody thinks.
    """

    end_ids: frozenset[int] = frozenset()
    blank_ids: frozenset[int] = frozenset()
    open_id: int | None = None
    close_id: int | None = None
    tool_id: int | None = None
    sentence: tuple[int, ...] = ()
    bare: tuple[int, ...] = ()
    budget: int | None = None
    open: bool = False
    may_open: bool = False
    begun: bool = False

    @property
    def window(self) -> int:
        """Tokens beyond the budget in which thinking closes as soon as the model would."""
        return min(256, max(8, self.budget // 8)) if self.budget else 0

    @property
    def allowance(self) -> int:
        """The most tokens that thinking takes beyond its budget: the window, and the sentence with its tag."""
        return self.window + _until(self.sentence, self.close_id)


class _State(Enum):
    MAY_OPEN = "before the first token, with which the model may open the block"
    THINKING = "inside the block"
    ANSWER = "behind it, or there is none"


class Thought:
    """The machine. ``room`` is how many tokens the answer may have in all, thinking included.

    ``tokens`` counts the block with both tags; ``closed_by`` tells how it ended; ``repeats``: the answer goes in
    circles, which is told and not cut.
    """

    def __init__(self, rules: ThinkingRules, room: int) -> None:
        self.rules = rules
        self.tokens = 0
        self.closed_by: Closing | None = None
        self._spent = 0
        self._blanks = 0
        self._said = rules.begun
        self._asked = False
        self._loops = LoopDetector()
        may_open = rules.may_open and rules.budget != 0
        self._state = _State.THINKING if rules.open else _State.MAY_OPEN if may_open else _State.ANSWER
        self._set_room(room)

    def _set_room(self, room: int) -> None:
        self._room = room
        spare = room - min(MOST_RESERVED, max(1, room // RESERVE_SHARE))
        # Where the sentence would take more than the thinking before it, the tag alone has to do.
        self._cut = self.rules.sentence if spare >= 2 * len(self.rules.sentence) else self.rules.bare
        self._latest = max(0, spare - len(self._cut))
        self._last_window = min(64, self._latest // 8)

    @property
    def is_open(self) -> bool:
        return self._state is _State.THINKING

    @property
    def repeats(self) -> bool:
        return self._state is _State.ANSWER and self._loops.looping

    @property
    def wants_rank(self) -> bool:
        """Whether the next token is drawn where a likely end is taken: then ``take`` asks for the end token's rank."""
        return self.is_open and (self._over_budget(0) or self._spent >= self._latest - self._last_window)

    @property
    def banned(self) -> frozenset[int]:
        """Ids that must not be drawn next."""
        if self._said or self.is_open:
            return frozenset()
        rules, left = self.rules, self._room - self._spent
        opens = self._state is _State.MAY_OPEN and left > 2  # the tag, the one that closes it, and a word
        tags = {rules.close_id} if opens else {rules.open_id, rules.close_id}
        banned = rules.end_ids | {tag for tag in tags if tag is not None}
        return banned | rules.blank_ids if self._blanks >= MAX_BLANKS or left <= 1 else banned

    def __copy__(self) -> Thought:
        """Another that goes on from here by itself."""
        other = Thought(self.rules, self._room)
        vars(other).update({**vars(self), "_loops": copy(self._loops)})
        return other

    def go_on(self, room: int, more: Sequence[int]) -> None:
        """From here with ``room`` for all tokens since the beginning; ``more`` come first, and nothing bounds them."""
        self._set_room(room)
        for token in more:
            self._think(token) if self.is_open else self._answer(token)

    def end(self) -> None:
        """Close the thinking with the next token, because a user asked for it."""
        self._asked = True

    def take(self, token: int, rank: int | None = None) -> tuple[int, ...]:
        """The tokens that become known now that ``token`` was drawn: itself, or in its place those that close.

        ``rank`` is that of the closing tag where ``wants_rank`` asked for it and it is among the first TOP_RANK.
        """
        if not self.is_open:
            self._answer(token)
        elif (why := self._reason(token, rank)) is not None:
            return self._close(why)
        else:
            self._think(token)
        return (token,)

    def _answer(self, token: int) -> None:
        self._spent += 1
        if self._state is _State.MAY_OPEN and token == self.rules.open_id:
            self._state = _State.THINKING
            self.tokens = 1
            return
        self._state = _State.ANSWER
        blank = token in self.rules.blank_ids
        self._blanks += blank
        self._said = self._said or not blank
        self._loops.push(token)

    def _think(self, token: int) -> None:
        self._spent += 1
        if token == self.rules.tool_id:  # models forget the tag before a call
            self._said = True
            self._leave("tool_call")
            return
        self.tokens += 1
        if token == self.rules.close_id:
            self._leave("model")
        else:
            self._loops.push(token)

    def _reason(self, token: int, rank: int | None) -> Closing | None:
        """Why ``token`` is not taken and the block closed in its place; None where it is taken."""
        if token in (self.rules.close_id, self.rules.tool_id):
            return None
        if self._asked:
            return "control"
        if token in self.rules.end_ids:
            return "end_of_turn"
        if self._spent >= self._latest:
            return "reserve"
        if self._over_budget(self.rules.window):
            return "budget"
        if self._loops.looping:
            return "loop"
        return "soft" if self.wants_rank and rank is not None else None

    def _over_budget(self, by: int) -> bool:
        return self.rules.budget is not None and self.tokens >= self.rules.budget + by

    def _close(self, why: Closing) -> tuple[int, ...]:
        assert self.rules.close_id is not None
        bare, left = self.rules.bare, self._room - self._spent
        wished = {"soft": bare[bare.index(self.rules.close_id) :], "end_of_turn": bare}.get(why, self._cut)
        written = next((ids for ids in (wished, bare) if len(ids) < left), (self.rules.close_id,))
        self._spent += len(written)
        self.tokens += _until(written, self.rules.close_id)
        self._leave(why)
        return written

    def _leave(self, why: Closing) -> None:
        self.closed_by = why
        self._state = _State.ANSWER
        self._loops = LoopDetector()


def _until(ids: tuple[int, ...], last: int | None) -> int:
    """How many of ``ids`` there are up to and with ``last``."""
    return ids.index(last) + 1 if last in ids else 0
