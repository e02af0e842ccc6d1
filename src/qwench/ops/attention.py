"""Causal attention over paged keys and values: one signature for prompt chunks and single tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from qwench.ops.rows import Rows


def paged_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rows: Rows,
) -> torch.Tensor:
    """Store the step's key and value [T, K, D], then attend from query [T, H, D]: [T, H, D].

    keys, values [pages * page_size, K, D] are the cache, written in place. Query head i reads key head i // (H / K);
    scores are scaled by D^-0.5. A token sees every cached token of its row up to itself.
    """
    keys[rows.kv_slots] = key.to(keys.dtype)
    values[rows.kv_slots] = value.to(values.dtype)
    output = torch.empty_like(query)
    for row, span in rows.spans():
        slots = rows.context_slots(row)
        output[span] = _attend(query[span], keys[slots].to(query.dtype), values[slots].to(query.dtype))
    return output


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
