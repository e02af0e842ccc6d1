"""From logits to tokens. Each row is drawn from its own request's parameters, seed and position alone, so the
neighbours in a batch change nothing but the last bits of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwench.engine.request import Request, SamplingParams, TokenLogprob


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """One token per row of logits [L, V] (fp32, padding already masked); row i belongs to requests[i]."""
    greedy = logits.argmax(-1).tolist()
    return [
        token if _is_plain_greedy(request) else _draw(_adjust(logits[row], request), request)
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


def _is_plain_greedy(request: Request) -> bool:
    """Whether the row's largest raw logit is the answer: greedy, and nothing shifts or forbids a token."""
    params = request.sampling
    return (
        params.is_greedy
        and not params.logit_bias
        and params.presence_penalty == params.frequency_penalty == 0
        and params.repetition_penalty == 1
        and request.num_generated >= params.min_tokens
    )


def _adjust(logits: torch.Tensor, request: Request) -> torch.Tensor:
    """Penalties, bias and the ban on ending too early, applied to a copy of one row [V].

    Presence and frequency count generated tokens only; repetition counts the prompt too.
    """
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
    if request.num_generated < params.min_tokens:
        logits[[token for token in request.stop_token_ids if token < len(logits)]] = -torch.inf
    return logits


def _draw(logits: torch.Tensor, request: Request) -> int:
    """A token from one adjusted row [V]: temperature, then top-k, top-p and min-p, then one uniform number."""
    params = request.sampling
    if params.is_greedy:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.double() / params.temperature, dim=-1)
    ids = None
    if params.top_k > 0 or params.top_p < 1:
        keep = min(params.top_k, logits.numel()) if params.top_k > 0 else logits.numel()
        probabilities, ids = torch.topk(probabilities, keep)
        probabilities = _nucleus(probabilities, params)
    if params.min_p > 0:
        floor = params.min_p * probabilities.max()
        probabilities = torch.where(probabilities >= floor, probabilities, 0.0)
    cumulative = probabilities.cumsum(-1)
    point = uniform(request.seed, request.num_generated) * cumulative[-1]
    # Rounding can carry the point past the last kept token; the last token that has any mass is meant then.
    last = int(torch.nonzero(probabilities)[-1])
    place = min(int(torch.searchsorted(cumulative, point, right=True)), last)
    return place if ids is None else int(ids[place])


def _nucleus(probabilities: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The smallest set of the largest probabilities (sorted) that reaches top_p of their sum."""
    if params.top_p == 1:
        return probabilities
    before = probabilities.cumsum(-1) - probabilities
    return torch.where(before < params.top_p * probabilities.sum(), probabilities, 0.0)


def uniform(seed: int, index: int) -> float:
    """The index-th number in [0, 1) of a seed: splitmix64 (Steele, Lea and Flood, 2014), a pure function of both."""
    mask = 2**64 - 1
    state = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return ((state ^ (state >> 31)) >> 11) / 2**53
