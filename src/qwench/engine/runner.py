"""The runner: the only file that touches the device while serving. A Step in, a RowResult per row out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from qwench.cache.prefix import Snapshot
from qwench.cache.storage import Storage
from qwench.engine.batching import build_batch
from qwench.engine.eyes import Eyes
from qwench.engine.request import TokenLogprob
from qwench.engine.sampling import rank_among, sample, token_logprobs
from qwench.engine.scheduler import Copies, RowResult, Step, StepRow
from qwench.engine.sight import Media
from qwench.engine.thinking import TOP_RANK
from qwench.fault import fault
from qwench.model.batch import Batch, CacheTensors
from qwench.ops.arrays import Array
from qwench.ops.choosing import Chooser

NOT_FINITE = "the model gave logits that are no finite numbers: damaged weights, or an overflow of float16"


class LanguageModel(Protocol):
    def forward(self, batch: Batch, cache: CacheTensors, seen: Mapping[bytes, Array] = ...) -> Array:
        """Logits [L, V] in fp32 for batch.logit_tokens; ``seen``: the rows of each of its pictures."""


class Runner:
    """Runs steps of one model over one storage. The last ``padding`` ids of its vocabulary are never drawn."""

    def __init__(
        self,
        model: LanguageModel,
        storage: Storage,
        *,
        page_size: int,
        chooser: Chooser,
        padding: int = 0,
        eyes: Eyes | None = None,
    ) -> None:
        self.model = model
        self.storage = storage
        self.page_size = page_size
        self.padding = padding
        self.chooser = chooser
        self.eyes = eyes

    def run(self, step: Step) -> list[RowResult]:
        """Compute every row of the step; rows that sample get a token, or an error if their logits are no numbers."""
        fault("memory.step")
        self.copy(step.copies)
        self.storage.reset(step.fresh_slots)
        batch = build_batch(step, self.page_size, self.padding)
        seen = self._seen(step) if batch.pictures else {}
        logits = self.model.forward(batch, self.storage, seen)
        logits = logits[:, : logits.shape[1] - self.padding]
        results: list[RowResult] = [RowResult()] * len(step.rows)
        last_logits: list[int] = []
        sampling_rows: list[int] = []
        start = 0
        for index, row in enumerate(step.rows):
            count = row.count if row.prompt_targets else int(row.samples)
            if row.prompt_targets:
                results[index] = RowResult(prompt_logprobs=self._prompt_logprobs(logits[start : start + count], row))
            start += count
            if row.samples:
                last_logits.append(start - 1)
                sampling_rows.append(index)
        if sampling_rows:
            if len(last_logits) < len(logits):  # a copy of a vocabulary for every row costs as much as choosing from it
                logits = logits[last_logits]
            self._sample(logits, step, sampling_rows, results)
        return results

    def _seen(self, step: Step) -> Mapping[bytes, Array]:
        """The rows of every picture that the step shows, looked at now where that was not done yet."""
        assert self.eyes is not None, "a picture was let in, but there is no vision tower"
        wanted: dict[bytes, Media] = {}
        for row in step.rows:
            sight = row.request.sight
            for span, _ in sight.within(range(row.start, row.start + row.count)):
                wanted[span.digest] = sight.media[span.digest]
        return self.eyes.see(wanted)

    def copy(self, copies: Copies) -> None:
        """What is kept of a sequence, and what a sequence begins with: pages and states change places."""
        self.storage.copy_states(copies.states)
        self.storage.copy_pages(copies.pages)

    def page_bytes(self) -> int:
        return self.storage.page_bytes

    def read_pages(self, pages: Sequence[int]) -> memoryview:
        """A copy of the bytes of ``pages``. Any thread may ask for those that nobody gives back meanwhile."""
        return self.storage.read_pages(pages)

    def read_state(self, snapshot: Snapshot) -> memoryview:
        """A copy of the bytes of its state."""
        return memoryview(b"") if snapshot.slot is None else self.storage.read_state(snapshot.slot)

    def write_pages(self, pages: Sequence[int], filled: int, runs: Sequence[tuple[int, memoryview]]) -> None:
        """Fill ``pages`` but for the first ``filled``; each of ``runs`` begins at one of them. Any thread may.

        Raises ValueError where sizes do not fit.
        """
        for first, data in runs:
            count, skip = len(data) // self.storage.page_bytes, max(0, filled - first)
            if skip < count:
                self.storage.write_pages(pages[first + skip : first + count], data, skip)

    def write_state(self, snapshot: Snapshot, state: memoryview) -> None:
        """Fill its state. Raises ValueError where the size does not fit."""
        if snapshot.slot is not None:
            self.storage.write_state(snapshot.slot, state)

    def _sample(self, logits: Array, step: Step, indices: list[int], results: list[RowResult]) -> None:
        """Draw a token for each of the rows ``indices`` from logits [len(indices), V] and write it to ``results``."""
        greedy = self.chooser.largest(logits)
        for index in (index for index, token in zip(indices, greedy, strict=True) if token < 0):
            results[index] = RowResult(error=NOT_FINITE)
        if min(greedy) < 0:
            fine = [place for place, token in enumerate(greedy) if token >= 0]
            logits, greedy, indices = logits[fine], [greedy[i] for i in fine], [indices[i] for i in fine]
        requests = [step.rows[index].request for index in indices]
        tokens = sample(logits, requests, greedy, self.chooser)
        asked = [place for place, request in enumerate(requests) if request.sampling.logprobs is not None]
        found: dict[int, TokenLogprob] = {}
        if asked:
            tops = [requests[place].sampling.logprobs or 0 for place in asked]
            told = token_logprobs(logits[asked], [tokens[place] for place in asked], tops, self.chooser)
            found = dict(zip(asked, told, strict=True))
        for place, index in enumerate(indices):
            thought, rank = requests[place].thought, None
            if thought is not None and thought.wants_rank and thought.rules.close_id is not None:
                rank = rank_among(logits[place], thought.rules.close_id, TOP_RANK, self.chooser)
            results[index] = RowResult(tokens[place], found.get(place), results[index].prompt_logprobs, rank=rank)

    def _prompt_logprobs(self, logits: Array, row: StepRow) -> tuple[TokenLogprob, ...]:
        """Log-probabilities of the row's prompt targets from the logits [count, V] of all its tokens."""
        targets = row.prompt_targets
        places = [target - 1 - row.start for target in targets]
        token_ids = [row.request.token_ids[target] for target in targets]
        top = row.request.sampling.prompt_logprobs or 0
        return tuple(token_logprobs(logits[places], token_ids, [top] * len(token_ids), self.chooser))
