"""From logits to tokens. Each row is drawn from its own request's parameters, seed and position alone, so the
neighbours in a batch change nothing but the last bits of the logits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from qwench.engine.request import Request, SamplingParams, TokenLogprob
from qwench.engine.thinking import TOP_RANK
from qwench.ops.arrays import Array, Host
from qwench.ops.choosing import Chooser, masked, replaced, take
from qwench.ops.weight_types import EXACT_PANELS, PANEL

FIRST_CANDIDATES = 256  # that are looked at for top-p alone: a trained model's nucleus is nearly always among them


def sample(
    logits: Array,
    requests: Sequence[Request],
    greedy: Sequence[int],
    chooser: Chooser,
) -> list[int]:
    """One token per row of logits [L, V] (fp32, padding already masked); row i belongs to requests[i].

    ``greedy`` are the places of the rows' largest logits.
    """
    return [
        token if _is_plain_greedy(request) else _draw(_adjust(logits[row], request), request, chooser)
        for row, (token, request) in enumerate(zip(greedy, requests, strict=True))
    ]


def token_logprobs(
    logits: Array, token_ids: Sequence[int], tops: Sequence[int], chooser: Chooser
) -> list[TokenLogprob]:
    """Raw log-probabilities of token_ids[i] in row i of logits [L, V], with the tops[i] most likely beside it."""
    return [_token_logprob(row, token, top, chooser) for row, token, top in zip(logits, token_ids, tops, strict=True)]


def _token_logprob(logits: Array, token: int, top: int, chooser: Chooser) -> TokenLogprob:
    values, ids = chooser.top(logits, max(top, 1))
    norm = float(values[0]) + math.log(chooser.mass(logits, 1.0))
    chosen = float(take(logits, [token])[0])
    beside = tuple((place, float(value) - norm) for place, value in zip(ids[:top].tolist(), values[:top], strict=True))
    return TokenLogprob(token, chosen - norm, int((logits > chosen).sum()) + 1, beside)


def rank_among(logits: Array, token: int, count: int, chooser: Chooser) -> int | None:
    """The rank of ``token`` in a row [V], 1 being the likeliest; None where it is not among the ``count`` likeliest."""
    likeliest: list[int] = chooser.top(logits, min(count, len(logits)))[1].tolist()
    return likeliest.index(token) + 1 if token in likeliest else None


def logits_that_count(request: Request, padding: int) -> tuple[int, float]:
    """How many of a row's largest logits are chosen from, and how far below these others may still be chosen.

    (0, 0.0) where any may be, or is told of or part of a number. What is banned, and the ``padding`` behind a
    vocabulary, may be among the largest; penalties lower the largest, and others by no more than these.
    """
    params = request.sampling
    chosen = 1 if params.is_greedy else max(0, params.top_k)
    lifted = min(params.presence_penalty, params.frequency_penalty) < 0 or params.repetition_penalty != 1
    told = params.logprobs is not None or _mask(request) is not None
    few = max(chosen, TOP_RANK) + len(_forbidden(request)) + -(-padding // PANEL) + 1
    if chosen == 0 or few > EXACT_PANELS or lifted or params.logit_bias or told:
        return 0, 0.0
    most = max(_generated(request).values(), default=0) if params.frequency_penalty else 1
    return few, params.presence_penalty + params.frequency_penalty * most


def _is_plain_greedy(request: Request) -> bool:
    """Whether the row's largest raw logit is the answer."""
    return request.sampling.is_greedy and not _is_adjusted(request)


def _is_adjusted(request: Request) -> bool:
    """Whether anything shifts or forbids a token."""
    params = request.sampling
    return (
        _mask(request) is not None
        or bool(params.logit_bias)
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
        or params.repetition_penalty != 1
        or bool(_forbidden(request))
    )


def _adjust(logits: Array, request: Request) -> Array:
    """Penalties, bias and the bans on ending too early: one row [V] as it is, or a copy where there are any.

    Presence and frequency count generated tokens only; repetition counts the prompt too. Few tokens are touched: they
    are taken out, changed and put back.
    """
    if not _is_adjusted(request):
        return logits
    params = request.sampling
    generated = _generated(request)
    seen = set(request.token_ids) if params.repetition_penalty != 1 else set[int]()
    bias = params.logit_bias or {}
    mask = _mask(request)  # it says itself where the answer may end
    banned = _forbidden(request) if mask is None else frozenset()
    places = sorted(token for token in {*seen, *generated, *bias, *banned} if token < len(logits))
    values = take(logits, places)
    if seen:
        repeated = np.array([token in seen for token in places])
        softer = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        values = np.where(repeated, softer, values)
    counts = np.array([generated[token] for token in places], np.float32)
    penalties = params.presence_penalty + params.frequency_penalty * counts
    values = np.where(counts > 0, values - penalties, values)
    values = values + np.array([bias.get(token, 0.0) for token in places], np.float32)
    values[np.array([token in banned for token in places], bool)] = -np.inf
    changed = replaced(logits, places, values)
    return changed if mask is None else masked(changed, mask)


def _mask(request: Request) -> bytes | None:
    return None if request.guide is None else request.guide.mask


def _generated(request: Request) -> Counter[int]:
    return Counter(request.token_ids[request.prompt_len :])


def _forbidden(request: Request) -> frozenset[int]:
    """What must not be drawn next where no mask says it: what a thought bans, and stops that come too early."""
    banned = request.thought.banned if request.thought is not None else frozenset[int]()
    return banned | request.stop_token_ids if request.num_generated < request.sampling.min_tokens else banned


def _draw(logits: Array, request: Request, chooser: Chooser) -> int:
    """A token from one adjusted row [V]: temperature, then top-k, top-p and min-p, then one uniform number."""
    params = request.sampling
    if params.is_greedy:
        return int(chooser.top(logits, 1)[1][0])
    point = uniform(request.seed, request.num_generated)
    if params.top_k <= 0 and params.top_p == 1:
        return chooser.draw(logits, params.temperature, floor=params.min_p, point=point)
    values, ids, total = _candidates(logits, params, chooser)
    weights = _weights(values, params)
    if params.top_p < 1:  # the smallest set of the largest that reaches this part of the total
        before = weights.cumsum() - weights
        weights = np.where(before < params.top_p * total, weights, 0.0)
    weights = np.where(weights >= params.min_p, weights, 0.0)  # the largest weighs 1
    cumulative = weights.cumsum()
    # Rounding can carry the point past the last kept token; the last token that has any weight is meant then.
    last = int(np.flatnonzero(weights)[-1])
    place = min(int(np.searchsorted(cumulative, point * cumulative[-1], side="right")), last)
    return int(ids[place])


def _candidates(logits: Array, params: SamplingParams, chooser: Chooser) -> tuple[Host, Host, float]:
    """The logits of a row [V] that count, descending, their ids, and the total that top-p refers to.

    These are the top k and their own total; without a k at least those that top-p keeps, and the total of all.
    """
    if params.top_k > 0:
        values, ids = chooser.top(logits, min(params.top_k, len(logits)))
        return values, ids, float(_weights(values, params).sum())
    total = chooser.mass(logits, params.temperature)
    count = min(FIRST_CANDIDATES, len(logits))
    while True:
        values, ids = chooser.top(logits, count)
        if count == len(logits) or float(_weights(values, params).sum()) >= params.top_p * total:
            return values, ids, total
        count = min(8 * count, len(logits))


def _weights(values: Host, params: SamplingParams) -> Host:
    """What descending logits weigh beside one another, in doubles; the first weighs 1."""
    wide = values.astype(np.float64)
    weights: Host = np.exp((wide - wide[0]) / params.temperature)
    return weights


def uniform(seed: int, index: int) -> float:
    """The index-th number in [0, 1) of a seed: splitmix64 (Steele, Lea and Flood, 2014), a pure function of both."""
    mask = 2**64 - 1
    state = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return ((state ^ (state >> 31)) >> 11) / 2**53
