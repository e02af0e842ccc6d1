"""The ledger model: a fake whose next token is a hash of everything it can read back through page table and state.

Any mistake in paging, batching, preemption or slot reuse changes a token at once, without weights. ``ledger_next`` is
the same hash over a plain list: the answer of an undisturbed sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qwench.cache.pool import Pool
from qwench.cache.prefix import PrefixPolicy
from qwench.cache.storage import CacheSpec, Storage
from qwench.engine.core import Engine
from qwench.engine.runner import Runner
from qwench.engine.scheduler import Scheduler
from qwench.model.batch import Batch, CacheTensors
from qwench.ops.arrays import Array, Host
from qwench.ops.choosing import TorchChooser

VOCABULARY = 251
MODULUS = 1_000_003  # every state is an integer below 2^24, exact in fp32

LEDGER_SPEC = CacheSpec(
    num_attention_layers=1,
    num_kv_heads=1,
    head_dim=1,
    num_delta_layers=1,
    conv_shape=(1, 1),
    state_shape=(1, 1, 1),
    dtype=np.dtype("float64"),
)


def ledger_next(tokens: Sequence[int], *, stateful: bool = True) -> int:
    """The token that follows ``tokens``."""
    state = 0
    for token in tokens if stateful else ():
        state = advance(state, token)
    return mix(tokens, list(range(len(tokens))), state, tokens[-1])


def ledger_answer(prompt: Sequence[int], length: int, *, stateful: bool = True) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(ledger_next(tokens, stateful=stateful))
    return tokens[len(prompt) :]


def advance(state: int, token: int) -> int:
    return (state * 31 + token + 7) % MODULUS


def mix(tokens: Sequence[int], positions: Sequence[int], state: int, last: int) -> int:
    digest = state * 17 + last
    for token, position in zip(tokens, positions, strict=True):
        digest = (digest * 131 + token * 7 + position) % MODULUS
    return digest % VOCABULARY


def read(tokens: Host, places: Sequence[int]) -> list[int]:
    found: list[int] = tokens[places].flatten().astype(int).tolist()
    return found


class LedgerModel:
    """Writes each token and position into its page slot, folds it into its state, and answers from both.

    Over a storage without states it is a model of attention alone.
    """

    def forward(self, batch: Batch, cache: CacheTensors, seen: object = None) -> Host:
        tokens, positions = batch.token_ids.tolist(), batch.positions[0].tolist()
        kv_slots, saves = batch.rows.kv_slots.tolist(), dict(batch.rows.saves)
        answers: list[int] = []
        for row, span in batch.rows.spans():
            slot = int(batch.rows.state_slots[row])
            context = batch.rows.context_slots(row).tolist()
            first = batch.rows.contexts[row] - (span.stop - span.start)
            for offset, place in enumerate(range(span.start, span.stop)):
                cache.keys[0][kv_slots[place]] = tokens[place]
                cache.values[0][kv_slots[place]] = positions[place]
                state, last = 0, tokens[place]
                if cache.recurrent:
                    cache.recurrent[0][slot] = advance(int(cache.recurrent[0][slot].item()), tokens[place])
                    cache.conv[0][slot] = tokens[place]
                    state, last = int(cache.recurrent[0][slot].item()), int(cache.conv[0][slot].item())
                    if place in saves:
                        for states in (cache.recurrent[0], cache.conv[0]):
                            states[saves[place]] = states[slot]
                visible = context[: first + offset + 1]
                answers.append(mix(read(cache.keys[0], visible), read(cache.values[0], visible), state, last))
        wanted = [answers[index] for index in batch.logit_tokens.tolist()]
        return np.eye(VOCABULARY, dtype=np.float32)[wanted]


class LedgerChooser(TorchChooser):
    """Random schedules ask for nothing else, tens of thousands of times, and torch would be a quarter of their time."""

    def largest(self, logits: Array) -> list[int]:
        assert isinstance(logits, np.ndarray)
        found: list[int] = np.where(np.isfinite(logits).all(-1), logits.argmax(-1), -1).tolist()
        return found


def ledger_engine(
    *,
    num_pages: int,
    page_size: int = 4,
    num_slots: int = 4,
    max_step_tokens: int = 16,
    snapshots: int = 0,
    state_pages: float = 2,
    near: int = 2,
) -> Engine:
    policy = PrefixPolicy(limit=snapshots, state_pages=state_pages, near=near)
    num_slots += snapshots if state_pages else 0
    spec = LEDGER_SPEC if state_pages else replace(LEDGER_SPEC, num_delta_layers=0)
    storage = Storage(spec, num_pages=num_pages, page_size=page_size, num_slots=num_slots)
    for tensor in (*storage.keys, *storage.values, *storage.conv, *storage.recurrent):
        tensor.fill(12345)  # what a former owner may have left behind must never be read
    scheduler = Scheduler(
        Pool(num_pages), Pool(num_slots), page_size=page_size, max_step_tokens=max_step_tokens, policy=policy
    )
    runner = Runner(LedgerModel(), storage, page_size=page_size, chooser=LedgerChooser())
    return Engine(scheduler, runner)
