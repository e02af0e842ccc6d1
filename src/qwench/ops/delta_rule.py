"""Gated DeltaNet's two sequence operations: the causal convolution and the gated delta rule. States are fp32.

The recurrent form is the definition; the chunked form is the same sum in matrix products and must agree with it.
    S <- exp(g) S;  d = beta (v - S^T k);  S <- S + k d^T;  o = S^T q
"""

from __future__ import annotations

from qwench.ops.lazy import F, torch
from qwench.ops.rows import Rows

CHUNK = 64


def causal_conv(inputs: torch.Tensor, weight: torch.Tensor, states: torch.Tensor, rows: Rows) -> torch.Tensor:
    """silu of a depthwise causal convolution over each row: inputs [T, C], weight [C, K] -> [T, C].

    states [N, K-1, C] hold the last K-1 inputs of every sequence, newest last, and are advanced in place.
    The last tap multiplies the current token. Sums are fp32 (and never TF32, as a library's convolution may be).
    """
    output = torch.empty_like(inputs)
    taps = weight.T.float()  # [K, C]
    columns = states.shape[1]
    single = rows.num_single
    if single:
        slots = rows.state_slots[:single]
        window = torch.cat((states[slots].to(inputs.dtype), inputs[:single, None]), dim=1)  # [single, K, C]
        output[:single] = F.silu((window * taps).sum(1))
        states[slots] = window[:, 1:].to(states.dtype)
        save_single(states, rows)
    for row, span in rows.spans(single):
        slot = rows.state_slots[row]
        window = torch.cat((states[slot].to(inputs.dtype), inputs[span]))  # [K-1+n, C]
        length = len(window) - columns
        total = window[:length] * taps[0]
        for tap in range(1, len(taps)):
            total += window[tap : tap + length] * taps[tap]
        output[span] = F.silu(total)
        for piece, target in rows.pieces(span):
            end = piece.stop - span.start
            states[slot if target is None else target] = window[end : end + columns].to(states.dtype)
        states[slot] = window[length:].to(states.dtype)
    return output


def gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    states: torch.Tensor,
    rows: Rows,
    *,
    tiled: bool = False,
) -> torch.Tensor:
    """Gated delta rule over each row: query, key [T, Hk, dk], value [T, Hv, dv], decay, beta [T, Hv] -> [T, Hv, dv].

    ``decay`` is the log-decay g <= 0. Queries and keys are l2-normalised here and queries scaled by dk^-0.5. Value head
    j reads key head j // (Hv / Hk), or j % Hk where ``tiled``. states [N, Hv, dk, dv] are advanced in place; they and
    the result are fp32.
    """
    repeats = value.shape[1] // key.shape[1]
    query, key = l2_normalise(query) * query.shape[-1] ** -0.5, l2_normalise(key)
    query, key = (x.repeat(1, repeats, 1) if tiled else x.repeat_interleave(repeats, 1) for x in (query, key))
    value, decay, beta = value.float(), decay.float(), beta.float()
    output = torch.empty_like(value)
    single = rows.num_single
    if single:
        slots, head = rows.state_slots[:single], slice(0, single)
        output[head], states[slots] = recurrent_step(
            query[head], key[head], value[head], decay[head], beta[head], states[slots]
        )
        save_single(states, rows)
    for row, span in rows.spans(single):
        slot = rows.state_slots[row]
        for part, target in rows.pieces(span):
            output[part], states[slot] = chunked(
                query[part], key[part], value[part], decay[part], beta[part], states[slot]
            )
            if target is not None:
                states[target] = states[slot]
    return output


def save_single(states: torch.Tensor, rows: Rows) -> None:
    """Save the states of rows of a single token: those come first, so a token's place is its row's."""
    for token, slot in rows.saves:
        if token < rows.num_single:
            states[slot] = states[rows.state_slots[token]]


def l2_normalise(x: torch.Tensor) -> torch.Tensor:
    """x / |x| over the last dimension in fp32, the epsilon inside the root."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)


def recurrent_step(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of S sequences: query, key [S, H, dk], value [S, H, dv], decay, beta [S, H], state [S, H, dk, dv].

    Returns the output [S, H, dv] and the new state.
    """
    state = state * decay.exp()[..., None, None]
    read = torch.einsum("shk,shkv->shv", key, state)
    delta = (value - read) * beta[..., None]
    state = state + key[..., None] * delta[..., None, :]
    return torch.einsum("shk,shkv->shv", query, state), state


def chunked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """n tokens of one sequence: query, key [n, H, dk], value [n, H, dv], decay, beta [n, H], state [H, dk, dv].

    Returns the output [n, H, dv] and the new state. Inside a chunk the updates form a unit lower triangular system;
    padding with zeros (also of g) leaves the state untouched.
    """
    length = query.shape[0]
    query, key, value = (_split_chunks(x) for x in (query, key, value))  # [H, N, B, d]
    decay, beta = (_split_chunks(x[..., None])[..., 0] for x in (decay, beta))  # [H, N, B]
    total = decay.cumsum(-1)
    gamma = (total[..., :, None] - total[..., None, :]).tril().exp().tril()  # masked before exp: no overflow
    growth = total.exp()[..., None]
    scaled_key = key * beta[..., None]
    triangle = (scaled_key @ key.transpose(-1, -2) * gamma).tril(-1)
    right = torch.cat((value * beta[..., None], scaled_key * growth), dim=-1)
    solved = torch.linalg.solve_triangular(triangle, right, upper=False, unitriangular=True)
    update, weight = torch.split(solved, [value.shape[-1], key.shape[-1]], dim=-1)
    scores = query @ key.transpose(-1, -2) * gamma
    query = query * growth
    remaining = (total[..., -1:] - total).exp()[..., None]
    key = (key * remaining).transpose(-1, -2)  # [H, N, dk, B]
    carried = growth[..., -1, :, None]  # [H, N, 1, 1]
    outputs = torch.empty_like(value)
    for chunk in range(value.shape[1]):
        fresh = update[:, chunk] - weight[:, chunk] @ state
        outputs[:, chunk] = query[:, chunk] @ state + scores[:, chunk] @ fresh
        state = state * carried[:, chunk] + key[:, chunk] @ fresh
    return outputs.flatten(1, 2)[:, :length].transpose(0, 1), state


def _split_chunks(x: torch.Tensor) -> torch.Tensor:
    """[n, H, d] to [H, N, CHUNK, d], padded with zeros at the end."""
    length, heads, width = x.shape
    chunks = -(-length // CHUNK)
    padded = F.pad(x.transpose(0, 1), (0, 0, 0, chunks * CHUNK - length))
    return padded.view(heads, chunks, CHUNK, width)
