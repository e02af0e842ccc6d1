"""Causal attention over paged keys and values: one signature for prompt chunks and single tokens.

What is kept of a head is its numbers, or, in int8, whole numbers in [-127, 127] and behind them one fp32 scale. The
native kernels keep a page in an order of their own (csrc/packed.h), so only who wrote a cache can read it.
"""

from __future__ import annotations

from qwench import footprint
from qwench.ops.arrays import INT8, DType
from qwench.ops.lazy import F, torch
from qwench.ops.rows import Rows

SCALE_BYTES = footprint.SCALE_BYTES
LARGEST_CODE = 127


def paged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Rows,
) -> torch.Tensor:
    """Store the step's key and value [T, K, D], then attend from query [T, H, D]: [T, H, D].

    keys, values [pages * page_size, K, at least D] are the cache, written in place. Query head i reads key head
    i // (H / K); scores are scaled by D^-0.5. A token sees every cached token of its row up to itself.
    """
    _store(key, keys, rows.kv_slots)
    _store(value, values, rows.kv_slots)
    output = torch.empty_like(query)
    for row, span in rows.spans():
        slots = rows.context_slots(row)
        output[span] = _attend(query[span], _load(keys, slots, query), _load(values, slots, query))
    return output


def kept_width(head_dim: int, dtype: DType) -> int:
    """Elements that are kept of a head: its width in whole tiles of the kernels, and in int8 its scale's bytes."""
    return footprint.kept_width(head_dim, coded=dtype == INT8)


def _store(heads: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    width = heads.shape[2]
    if cache.dtype == torch.int8:
        heads = heads.float()
        scales = heads.abs().amax(2, keepdim=True) / LARGEST_CODE
        cache[..., -SCALE_BYTES:].view(torch.float32)[slots] = scales
        heads = (heads / scales).round().nan_to_num(0.0)  # nothing but zeros has no scale to be divided by
    cache[..., :width][slots] = heads.to(cache.dtype)


def _load(cache: torch.Tensor, slots: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[len(slots), K, D] in the type of ``like`` [.., D]."""
    heads = cache[..., : like.shape[2]][slots]
    if cache.dtype == torch.int8:
        return (heads * cache[..., -SCALE_BYTES:].view(torch.float32)[slots]).to(like.dtype)
    return heads.to(like.dtype)


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The last len(query) tokens of one sequence attend: query [n, H, D], keys and values [context, K, D]."""
    length, num_heads, _ = query.shape
    context, num_kv_heads, _ = keys.shape
    # Heads that share a key head are folded into the query's rows when there is one token: no copy of the cache.
    if length == 1:
        grouped = query.view(num_kv_heads, num_heads // num_kv_heads, -1)
        return F.scaled_dot_product_attention(
            grouped[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
        ).view(1, num_heads, -1)
    repeats = num_heads // num_kv_heads
    mask = None
    if context > length:
        seen = torch.arange(context - length, context, device=query.device)
        mask = torch.arange(context, device=query.device) <= seen[:, None]
    result = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys.transpose(0, 1).repeat_interleave(repeats, 0)[None],
        values.transpose(0, 1).repeat_interleave(repeats, 0)[None],
        attn_mask=mask,
        is_causal=mask is None,
    )
    return result[0].transpose(0, 1)
