"""What the engine is asked and what it answers: SamplingParams, Request, TokenEvent. Token ids only, no text.

Knows neither torch nor a clock. ``Request`` has two counters: ``len(token_ids)`` tokens are *known*,
``computed`` of them are in the cache; the scheduler's whole work is to close that gap. Only the scheduler
writes a Request after it was submitted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from qwench.engine.sight import NOTHING, Sight
from qwench.engine.thinking import Closing, Thought
from qwench.errors import RequestError

if TYPE_CHECKING:
    from qwench.cache.prefix import Snapshot

FinishReason = Literal["stop", "length", "abort", "error"]
Failure = Literal["nan_logits", "grammar_too_complex"]
MAX_LOGPROBS = 100
MAX_SEED = 2**64
GREEDY_BELOW = 1e-5  # temperatures below this cannot be told from 0, and dividing by them overflows


@dataclass(frozen=True)
class SamplingParams:
    """How to draw tokens; vLLM's names and meanings, neutral defaults.

    ``temperature`` 0 is greedy. ``top_k`` 0 or -1 keeps all. ``max_tokens`` None means: until the model ends its
    answer or the window is full. ``logprobs`` k returns the k most likely tokens (and always the drawn one) with the
    model's raw log-probabilities. ``stop`` strings are watched by the text layer, which
    also reads ``structured_outputs`` (json, regex, choice or grammar; docs/structured.md). Raises RequestError naming
    the field.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | tuple[str, ...] | None = None
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    min_tokens: int = 0
    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: dict[str, object] | None = None

    def __post_init__(self) -> None:
        for name, least, most in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
            ("repetition_penalty", 0.01, 100.0),
        ):
            self._check_real(name, least, most)
        if self.top_p == 0.0:
            raise RequestError("top_p is 0; it must be greater than 0.", param="top_p")
        self._check_whole("n", 1, 128)
        self._check_whole("top_k", -1, None)
        self._check_whole("min_tokens", 0, None)
        for name in ("max_tokens", "seed", "logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                low, high = {"max_tokens": (1, None), "seed": (-MAX_SEED, MAX_SEED)}.get(name, (0, MAX_LOGPROBS))
                self._check_whole(name, low, high)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens ({self.max_tokens}); lower the first.",
                param="min_tokens",
            )
        self._check_collections()

    def _check_collections(self) -> None:
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {getattr(self, name)!r}; give True or False.", param=name)
        stop: object = (self.stop,) if isinstance(self.stop, str) or self.stop is None else self.stop
        if not isinstance(stop, (list, tuple)) or not all(text is None or isinstance(text, str) for text in stop):
            raise RequestError(f"stop is {self.stop!r}; give a text or a list of texts.", param="stop")
        ids: object = self.stop_token_ids or ()
        if not isinstance(ids, (list, tuple)) or not all(type(token) is int for token in ids):
            raise RequestError(f"stop_token_ids is {ids!r}; give a list of token ids.", param="stop_token_ids")
        wish: object = self.structured_outputs
        if wish is not None and not isinstance(wish, dict):
            reason = "give an object with json, regex, choice or grammar"
            raise RequestError(f"structured_outputs is {wish!r:.80}; {reason}.", param="structured_outputs")
        biases: object = self.logit_bias or {}
        if not isinstance(biases, dict) or not all(type(token) is int for token in biases):
            raise RequestError(f"logit_bias is {biases!r}; give token ids and their biases.", param="logit_bias")
        for bias in biases.values():
            if type(bias) not in (int, float) or not -100 <= bias <= 100:
                raise RequestError(f"logit_bias holds {bias!r}; give values from -100 to 100.", param="logit_bias")

    def _check_real(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise RequestError(f"{name} is {value!r}; give a number from {low:g} to {high:g}.", param=name)

    def _check_whole(self, name: str, low: int, high: int | None) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
            bound = f"from {low} to {high}" if high is not None else f"of at least {low}"
            raise RequestError(f"{name} is {value!r}; give a whole number {bound}.", param=name)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple, empty strings left out."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return tuple(text for text in stop if text)

    def for_choice(self, index: int) -> SamplingParams:
        """The parameters of choice ``index`` of an ``n`` > 1 request: alone, with a seed of its own."""
        seed = None if self.seed is None else (self.seed + index) % MAX_SEED
        return replace(self, n=1, seed=seed)


@dataclass(frozen=True)
class Vocabulary:
    """What the engine has to know of a tokenizer: ids from ``size`` on are padding rows, ``end_ids`` end an answer."""

    size: int
    end_ids: frozenset[int]


@dataclass(frozen=True)
class TokenLogprob:
    """Raw log-probability of one token, with its rank (1 = most likely) and the ``top`` most likely (id, logprob)."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Marks:
    """Where the text layer sees a prompt's seams, as counts of tokens before them.

    ``ends``: after each message. ``orders``: where a state must be kept, because the client or the segment says so.
    """

    ends: tuple[int, ...] = ()
    orders: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reuse:
    """What was known of a prompt when it began: ``cached`` tokens were not computed again, ``matched`` were stored.

    ``differs``: something else is stored behind those, so that the next token is where two sequences part. ``tier`` is
    where the reused part was: in the engine's memory, or on disk since another run.
    """

    cached: int
    matched: int
    differs: bool
    tier: Literal["live", "disk"] = "live"


class Guide(Protocol):
    """What an answer may say, token by token. The text layer writes one for each request; the engine only obeys.

    ``mask`` has one bit for each id, the lowest first, set for those that may come next, ends of the answer included;
    None lets all come. It stands above whatever else forbids tokens.
    """

    @property
    def mask(self) -> bytes | None: ...

    def accept(self, token_ids: Sequence[int]) -> str | None:
        """These have become known. Returns why the answer cannot go on, if it cannot."""

    def __copy__(self) -> Self:
        """Another that goes on from here by itself."""


@dataclass(frozen=True)
class MediaSpan:
    """Where a picture or a video lies in a prompt: ``count`` tokens from ``first`` to its last placeholder.

    All of a picture's are placeholders; between the moments of a video stand their times. ``media`` is what is seen.
    """

    first: int
    count: int
    media: Any


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """One sequence being generated. ``token_ids`` is prompt and answer; ``computed`` of them are in the cache."""

    id: int
    prompt_len: int
    token_ids: list[int]
    sampling: SamplingParams
    stop_token_ids: frozenset[int]
    seed: int
    max_total: int  # prompt and answer together never exceed this
    thought: Thought | None = None
    guide: Guide | None = None
    sight: Sight = NOTHING
    looked: bool = True  # at all that its prompt shows, as far as that will be computed
    computed: int = 0
    prompt_logprobs_told: int = (
        0  # prompt tokens whose log-probability was delivered, counted with the first (it has none)
    )
    pages: list[int] = field(default_factory=list)
    state_slot: int | None = None
    status: Status = Status.WAITING
    num_preemptions: int = 0
    num_failures: int = 0  # steps that failed with it among others
    marks: Marks = Marks()
    background: bool = False  # never costs another request what is kept for it, and lets others read first
    owner: str = ""  # whose it is: each gets an equal share of the reading
    arrival: int = 0  # its place among all that came
    expected: int = 0  # while it waits: tokens that are probably known already
    abandoned: bool = False  # nobody waits for it; it is over once its prompt is read
    cuts: list[int] = field(default_factory=list)  # here the state is kept; ascending
    leader: Request | None = None  # who reads now what this one begins with, while it waits
    led_to: int = 0  # so many of its tokens
    anchor: Snapshot | None = None  # the deepest snapshot of this sequence, pinned
    reuse: Reuse | None = None  # known from the first admission on
    reuse_told: bool = False
    sought: bool = False  # on disk
    arriving: bool = False  # what was found there is being read
    refused_at: int = -1  # what the scheduler counted when there was no room for it

    def identities(self, count: int | None = None) -> list[int]:
        """What the prefix cache tells the first ``count`` tokens by, or all: ids, but in pictures what is seen."""
        known = self.token_ids[:count]
        for span, places in self.sight.within(range(len(known))):
            known[places.start : places.stop] = span.identities[: len(places)]
        return known

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.prompt_len

    @property
    def missing(self) -> int:
        """How many known tokens are not yet computed."""
        return len(self.token_ids) - self.computed

    @property
    def is_live(self) -> bool:
        """Whether it is generating: it has one token to compute, or the few that were put into its answer at once."""
        return self.missing == 1 or self.computed >= self.prompt_len

    @property
    def unread(self) -> int:
        """How many tokens it will take to compute, as far as can be told."""
        return len(self.token_ids) - (self.computed or self.expected)


@dataclass(frozen=True)
class Saved:
    """A sequence as it was at some moment: continued from here, it goes on as the original did.

    ``snapshot`` is None where there was no room for one; then continuing means computing ``token_ids`` again.
    ``thought`` is how far its thinking was, ``sight`` what its prompt shows, ``guide`` what it may say from here.
    """

    prompt_len: int
    token_ids: tuple[int, ...]
    snapshot: Snapshot | None
    thought: Thought | None = None
    sight: Sight = NOTHING
    guide: Guide | None = None


@dataclass(frozen=True)
class TokenEvent:
    """What one step did for one request; the last event of a request carries ``finish_reason``.

    ``stop_token_id`` is the id that ended the answer (it is not among ``token_ids``). ``error`` is the failure behind
    finish_reason "error", and ``failure`` its name, where it has one. ``prompt_logprobs`` comes in pieces, one entry
    for each prompt token from the second on. ``logprobs``, where asked for, has one for each token, None for those that
    were not drawn but written by us.
    ``closed_by`` tells how thinking ended, from then on; ``repeats`` that the answer goes in circles.
    ``reuse`` comes with the first event.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob | None, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    reuse: Reuse | None = None
    error: str | None = None
    failure: Failure | None = None
    closed_by: Closing | None = None
    repeats: bool = False

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were not computed again, where this event tells so; else 0."""
        return self.reuse.cached if self.reuse else 0
