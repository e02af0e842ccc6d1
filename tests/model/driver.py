"""Drives the language model without the engine's loop: logits of every token, for any cut of a sequence into steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from qwench.cache.storage import CacheSpec, Storage
from qwench.engine.batching import build_batch
from qwench.engine.request import Request, SamplingParams
from qwench.engine.scheduler import Step, StepRow
from qwench.engine.start import build_model
from qwench.files import open_files, read_config
from qwench.ops.arrays import FLOAT32, DType, as_torch
from qwench.ops.kernels import Kernels, TorchKernels
from qwench.weights.open import open_weights

PAGE_SIZE, NUM_PAGES, NUM_SLOTS = 64, 100, 20


class Driver:
    """One checkpoint with room for NUM_SLOTS sequences, computed by ``kernels``: torch's unless others are given."""

    def __init__(
        self,
        path: Path,
        kernels: Kernels | None = None,
        dtype: DType = FLOAT32,
        quantization: str | None = None,
        kv_cache_dtype: str = "auto",
    ) -> None:
        files = open_files(path)
        self.config = read_config(files)
        source = open_weights(files, self.config, dtype, quantization)
        kernels = kernels or TorchKernels()
        self.model = build_model(self.config, source, kernels)
        self.storage = Storage(
            CacheSpec.of(self.config, dtype, kv_cache_dtype),
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            num_slots=NUM_SLOTS,
            memory=kernels.zeros,
        )

    def logits(self, sequences: Sequence[Sequence[int]], chunk: int) -> list[torch.Tensor]:
        """Logits [len, V] of every sequence, all advanced together ``chunk`` tokens a step."""
        requests, pages = [], list(range(NUM_PAGES))
        for number, ids in enumerate(sequences):
            request = Request(
                id=number,
                prompt_len=len(ids),
                token_ids=list(ids),
                sampling=SamplingParams(prompt_logprobs=0),
                stop_token_ids=frozenset(),
                seed=0,
                max_total=len(ids) + 1,
                state_slot=number,
            )
            request.pages = [pages.pop() for _ in range(-(-len(ids) // PAGE_SIZE))]
            requests.append(request)
        self.storage.reset(range(len(requests)))
        found: list[list[torch.Tensor]] = [[] for _ in requests]
        while any(request.missing for request in requests):
            rows = [StepRow(r, r.computed, min(chunk, r.missing)) for r in requests if r.missing]
            rows.sort(key=lambda row: row.count > 1)
            step = Step(tuple(rows), ())
            parts = as_torch(self.model.forward(build_batch(step, PAGE_SIZE), self.storage))
            for row, part in zip(rows, torch.split(parts, [row.count for row in rows]), strict=True):
                found[row.request.id].append(part)
                row.request.computed += row.count
        return [torch.cat(parts) for parts in found]
