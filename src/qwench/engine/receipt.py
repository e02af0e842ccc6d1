"""A receipt: how far a quantised model strays from its original over one text, in nats and in first choices.

Both models may be too large to be in memory together: the original's log-probabilities wait in a file. Token ids only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwench.config import EngineConfig, ModelConfig
from qwench.engine.batching import build_batch
from qwench.engine.request import Request, SamplingParams, Vocabulary
from qwench.engine.runner import Runner
from qwench.engine.scheduler import Step, StepRow
from qwench.engine.start import load_engine
from qwench.files import open_files
from qwench.ops.arrays import as_torch
from qwench.ops.lazy import torch
from qwench.weights.source import Progress

CHUNK = 64  # tokens whose probabilities are in memory at a time


@dataclass(frozen=True)
class Receipt:
    """``divergence``: mean KL divergence from the original in nats; ``agreement``: share of equal first choices."""

    text: str
    tokens: int
    divergence: float
    agreement: float


def log_probabilities(
    config: EngineConfig, model: ModelConfig, folder: Path, ids: Sequence[int], progress: Progress
) -> Iterator[torch.Tensor]:
    """Of the token after each of ``ids``: [at most CHUNK, V] fp32 at a time. The model is loaded, then freed."""
    vocabulary = Vocabulary(model.vocab_size, frozenset())
    engine, _ = load_engine(config, model, open_files(folder), vocabulary, progress)
    runner = engine.runner
    assert isinstance(runner, Runner)
    request = Request(
        id=0,
        prompt_len=len(ids),
        token_ids=list(ids),
        sampling=SamplingParams(prompt_logprobs=0),
        stop_token_ids=frozenset(),
        seed=0,
        max_total=len(ids) + 1,
        state_slot=0,
    )
    request.pages = list(range(-(-len(ids) // config.page_size)))
    runner.storage.reset([0])
    while request.missing:
        row = StepRow(request, request.computed, min(CHUNK, request.missing))
        batch = build_batch(Step((row,), ()), config.page_size)
        yield torch.log_softmax(as_torch(runner.model.forward(batch, runner.storage)).cpu(), dim=-1)
        request.computed += row.count


def keep(chunks: Iterator[torch.Tensor], file: Path) -> None:
    """Write log-probabilities as float16 to ``file``, whole or not at all."""
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as target:
        for chunk in chunks:
            target.write(chunk.half().numpy().tobytes())
    part.replace(file)


def compare(file: Path, chunks: Iterator[torch.Tensor], text: str) -> Receipt:
    """The receipt of the model whose log-probabilities are ``chunks``, against those kept in ``file``."""
    total, equal, tokens = 0.0, 0, 0
    with file.open("rb") as source:
        for found in chunks:
            raw = bytearray(source.read(found.numel() * 2))
            wanted = torch.log_softmax(torch.frombuffer(raw, dtype=torch.float16).float().view_as(found), dim=-1)
            total += float((wanted.exp() * (wanted - found)).sum(dtype=torch.float64))
            equal += int((wanted.argmax(-1) == found.argmax(-1)).sum())
            tokens += len(found)
    return Receipt(text, tokens, total / tokens, equal / tokens)
