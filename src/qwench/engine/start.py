"""From a folder to a running engine: resolve the settings, load the weights, size the cache, put the parts together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from qwench.cache.pool import Pool
from qwench.cache.storage import CacheSpec, Storage
from qwench.config import EngineConfig, ModelConfig
from qwench.device import memory_for
from qwench.engine.core import Engine
from qwench.engine.request import Vocabulary
from qwench.engine.resolve import Choice, Resolved, resolve
from qwench.engine.runner import Runner
from qwench.engine.scheduler import Scheduler
from qwench.model.parameters import declare
from qwench.model.qwen import Qwen
from qwench.ops.kernels import make_kernels
from qwench.weights.load import UnusedTensor, load


def resolve_for(config: EngineConfig, model: ModelConfig) -> Resolved:
    """The settings ``config`` comes to for ``model`` on this machine."""
    return resolve(config, model, sum(math.prod(spec.shape) for spec in declare(model).values()))


def load_engine(
    config: EngineConfig,
    model: ModelConfig,
    folder: Path,
    vocabulary: Vocabulary,
    progress: Callable[[int, int], None],
) -> tuple[Engine, Resolved]:
    """The engine of the checkpoint in ``folder``; ``progress`` is told bytes loaded and bytes in all."""
    resolved = resolve_for(config, model)
    with memory_for("weights", "take a smaller model or a smaller dtype"):
        loaded = load(folder, model, device=resolved.device, dtype=resolved.dtype, progress=progress)
    resolved = replace(resolved, choices=resolved.choices + tuple(_unused(loaded.unused)))
    return assemble(config, model, resolved, loaded.tensors, vocabulary), resolved


def _unused(tensors: Sequence[UnusedTensor]) -> Iterator[Choice]:
    """One line for each reason why stored tensors were left in their files."""
    counts = Counter(tensor.reason for tensor in tensors)
    for reason, count in counts.items():
        yield Choice("not loaded", f"{count} tensors", reason)


def assemble(
    config: EngineConfig,
    model: ModelConfig,
    resolved: Resolved,
    tensors: dict[str, torch.Tensor],
    vocabulary: Vocabulary,
) -> Engine:
    """An engine over tensors that are already there (loaded, or random for a benchmark); ``tensors`` is emptied.

    Call it on the thread that will step the engine: torch keeps the number of threads per calling thread.
    """
    torch.set_num_threads(resolved.threads)
    spec = CacheSpec.of(model, resolved.dtype)
    with memory_for("cache", "lower max_model_len or max_num_seqs, or give less with memory"):
        storage = Storage(
            spec,
            num_pages=resolved.num_pages,
            page_size=config.page_size,
            num_slots=resolved.max_num_seqs,
            device=resolved.device,
        )
    scheduler = Scheduler(
        Pool(resolved.num_pages),
        Pool(resolved.max_num_seqs),
        page_size=config.page_size,
        max_step_tokens=config.max_step_tokens,
    )
    kernels = make_kernels(resolved.isa, resolved.threads)
    runner = Runner(
        Qwen(model, tensors, kernels),
        storage,
        page_size=config.page_size,
        usable_tokens=vocabulary.size,
        chooser=kernels.chooser,
    )
    return Engine(scheduler, runner)
