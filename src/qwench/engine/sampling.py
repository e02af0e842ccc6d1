"""From logits to tokens. Each row is drawn from its own request's parameters, seed and position alone, so the
neighbours in a batch change nothing but the last bits of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwench.engine.request import Request, SamplingParams, TokenLogprob
from qwench.ops.choosing import Chooser

FIRST_CANDIDATES = 256  # that are looked at for top-p alone: a trained model's nucleus is nearly always among them


def sample(
    logits: torch.Tensor,
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


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """Raw log-probabilities of token_ids[i] in row i of logits [L, V], with the tops[i] most likely beside it."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])
    ranks = (logprobs > chosen).sum(-1) + 1
    values, ids = torch.topk(logprobs, max(*tops, 1), dim=-1)
    return [
        TokenLogprob(token, logprob, rank, tuple(zip(row_ids[:top], row_values[:top], strict=True)))
        for token, logprob, rank, row_ids, row_values, top in zip(
            token_ids, chosen[:, 0].tolist(), ranks.tolist(), ids.tolist(), values.tolist(), tops, strict=True
        )
    ]


def rank_among(logits: torch.Tensor, token: int, count: int, chooser: Chooser) -> int | None:
    """The rank of ``token`` in a row [V], 1 being the likeliest; None where it is not among the ``count`` likeliest."""
    likeliest = chooser.top(logits, min(count, len(logits)))[1].tolist()
    return likeliest.index(token) + 1 if token in likeliest else None


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
        or request.num_generated < params.min_tokens
        or bool(_banned(request))
    )


def _adjust(logits: torch.Tensor, request: Request) -> torch.Tensor:
    """Penalties, bias and the bans on ending too early: one row [V] as it is, or a copy where there are any.

    Presence and frequency count generated tokens only; repetition counts the prompt too.
    """
    if not _is_adjusted(request):
        return logits
    params = request.sampling
    logits = logits.clone()
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(request.token_ids)), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    generated = request.token_ids[request.prompt_len :]
    if generated and (params.presence_penalty or params.frequency_penalty):
        ids, counts = torch.unique(torch.tensor(generated, device=logits.device), return_counts=True)
        logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
    for token, bias in (params.logit_bias or {}).items():
        logits[token] += bias
    if (mask := _mask(request)) is not None:  # it says itself where the answer may end
        bits = torch.frombuffer(bytearray(mask), dtype=torch.uint8).to(logits.device)
        allowed = (bits[:, None] >> torch.arange(8, device=logits.device)) & 1
        return logits.masked_fill_(allowed.flatten()[: len(logits)] == 0, -torch.inf)
    banned = _banned(request)
    if request.num_generated < params.min_tokens:
        banned |= request.stop_token_ids
    logits[[token for token in banned if token < len(logits)]] = -torch.inf
    return logits


def _mask(request: Request) -> bytes | None:
    return None if request.guide is None else request.guide.mask


def _banned(request: Request) -> frozenset[int]:
    return request.thought.banned if request.thought is not None else frozenset()


def _draw(logits: torch.Tensor, request: Request, chooser: Chooser) -> int:
    """A token from one adjusted row [V]: temperature, then top-k, top-p and min-p, then one uniform number."""
    params = request.sampling
    if params.is_greedy:
        return int(chooser.top(logits, 1)[1])
    point = uniform(request.seed, request.num_generated)
    if params.top_k <= 0 and params.top_p == 1:
        return chooser.draw(logits, params.temperature, floor=params.min_p, point=point)
    values, ids, total = _candidates(logits, params, chooser)
    weights = _weights(values, params)
    if params.top_p < 1:  # the smallest set of the largest that reaches this part of the total
        before = weights.cumsum(-1) - weights
        weights = torch.where(before < params.top_p * total, weights, 0.0)
    weights = torch.where(weights >= params.min_p, weights, 0.0)  # the largest weighs 1
    cumulative = weights.cumsum(-1)
    # Rounding can carry the point past the last kept token; the last token that has any weight is meant then.
    last = int(torch.nonzero(weights)[-1])
    place = min(int(torch.searchsorted(cumulative, point * cumulative[-1], right=True)), last)
    return int(ids[place])


def _candidates(
    logits: torch.Tensor, params: SamplingParams, chooser: Chooser
) -> tuple[torch.Tensor, torch.Tensor, float]:
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


def _weights(values: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """What descending logits weigh beside one another, in doubles; the first weighs 1."""
    return torch.exp((values.double() - values[0].double()) / params.temperature)


def uniform(seed: int, index: int) -> float:
    """The index-th number in [0, 1) of a seed: splitmix64 (Steele, Lea and Flood, 2014), a pure function of both."""
    mask = 2**64 - 1
    state = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return ((state ^ (state >> 31)) >> 11) / 2**53
