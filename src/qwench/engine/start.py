"""From a model's files to a running engine: resolve settings, load weights, size the cache, put the parts together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from qwench.cache.disk import DiskTier
from qwench.cache.identity import identity
from qwench.cache.pool import Pool
from qwench.cache.prefix import PrefixPolicy
from qwench.cache.storage import CacheSpec, Storage
from qwench.config import EngineConfig, ModelConfig, VisionConfig
from qwench.device import memory_for, resident_bytes
from qwench.engine.core import Engine
from qwench.engine.eyes import Eyes, build_tower
from qwench.engine.request import Vocabulary
from qwench.engine.resolve import Choice, Resolved, resolve, resolve_dtype
from qwench.engine.runner import Runner
from qwench.engine.scheduler import Scheduler
from qwench.engine.shelf import Shelf
from qwench.errors import CheckpointError
from qwench.files import ModelFiles
from qwench.model.parameters import declare
from qwench.model.qwen import Qwen
from qwench.ops.arrays import DTYPES, Array
from qwench.ops.kernels import Kernels, make_kernels
from qwench.ops.loading import Loading, Unloadable
from qwench.ops.store import Kind, Plan, WeightStore
from qwench.ops.weight_types import WeightType
from qwench.weights.gguf import GgufSource
from qwench.weights.open import open_weights
from qwench.weights.random import RandomSource
from qwench.weights.recipe import kinds_for
from qwench.weights.source import Progress, UnusedTensor, WeightSource, memory_bytes
from qwench.weights.vision import VisionWeights, open_vision

DEFAULT_DISK = 8 * 2**30
# The operator's choices that leave a state's bits alone; of any other it is assumed that they do not.
INDIFFERENT = (
    *("model", "device", "dtype", "max_model_len", "max_num_seqs", "memory", "seed", "max_step_tokens", "offline"),
    *("gpu_memory_utilization", "prefix_cache", "cache_dir", "cache_dir_size", "max_queue", "on_disconnect"),
)
MATRICES = ("table", "matrix", "experts")


def resolve_for(
    config: EngineConfig, model: ModelConfig, kinds: Mapping[str, Kind] | None = None, loaded: int = 0
) -> Resolved:
    """The settings ``config`` comes to for ``model``, whose weights will be of ``kinds``, on this machine.

    ``loaded`` bytes of them are in memory already, less what must stay free for other things.
    """
    dtype = DTYPES[resolve_dtype(config, model).value]
    return resolve(config, model, kinds or kinds_for(model, config.quantization, dtype), loaded)


def load_engine(
    config: EngineConfig,
    model: ModelConfig,
    files: ModelFiles,
    vocabulary: Vocabulary,
    progress: Progress,
    begun: Loading | None = None,
) -> tuple[Engine, Resolved]:
    """The engine of the checkpoint in ``files``; ``progress`` is told bytes loaded and bytes in all.

    ``begun``: the load of some of its weights, if it is under way.
    """
    dtype = DTYPES[resolve_dtype(config, model).value]
    source = open_weights(files, model, dtype, config.quantization)
    vision = None if model.vision is None else open_vision(files, model.vision, dtype, config.quantization)
    aside = 0 if vision is None else vision.memory_bytes
    resolved = resolve_for(config, model, source.kinds, (0 if begun is None else begun.bytes_taken) - aside)
    told = (*_unused(source.unused), *_converted(source), *_vision(model, vision))
    disk = _disk(config, files, resolved)
    if disk is not None:
        held = f"{disk.held / 2**30:.2f} of {disk.limit / 2**30:.2f} GiB"
        told = (*told, Choice("cache folder", str(disk.path), f"{len(disk)} snapshots of this model, {held}"))
    resolved = replace(resolved, choices=resolved.choices + told)
    before = resident_bytes() - (0 if begun is None else begun.bytes_taken)
    engine = assemble(config, model, resolved, source, vocabulary, progress, begun)
    resolved = replace(resolved, choices=(*resolved.choices, *_measured(model, source, before)))
    assert isinstance(engine.runner, Runner)
    if model.vision is not None and vision is not None:
        engine.eyes = engine.runner.eyes = _eyes(model.vision, vision, engine.runner)
    if disk is not None:
        engine.shelf = Shelf(disk, engine.scheduler, engine.runner)
    return engine, resolved


def _disk(config: EngineConfig, files: ModelFiles, resolved: Resolved) -> DiskTier | None:
    """The disk tier, where there is a folder for it. Raises UsageError where that cannot be written."""
    if config.cache_dir is None:
        return None
    told = {name: value for name, value in asdict(config).items() if name not in INDIFFERENT}
    settings = (resolved.dtype, resolved.isa, sorted(told.items()))
    folder = Path(config.cache_dir).expanduser()
    return DiskTier(folder, identity(files, settings), config.cache_dir_size or DEFAULT_DISK, config.page_size)


def random_engine(config: EngineConfig, model: ModelConfig, vocabulary: Vocabulary) -> tuple[Engine, Resolved]:
    """The engine of a shape without a checkpoint, over random weights."""
    resolved = resolve_for(config, model)
    source = RandomSource(model, kinds_for(model, config.quantization, resolved.dtype), config.seed)
    return assemble(config, model, resolved, source, vocabulary), resolved


def _measured(model: ModelConfig, source: WeightSource, before: int) -> Iterator[Choice]:
    """What the process grew by beside what was planned."""
    planned, grown = memory_bytes(model, source.kinds), resident_bytes() - before
    if grown > 0:
        told = f"{planned / 2**20:,.0f} MiB planned for the weights; the cache is taken as it is used"
        yield Choice("memory", f"{grown / 2**20:,.0f} MiB taken", told)


def _unused(tensors: Sequence[UnusedTensor]) -> Iterator[Choice]:
    """One line for each reason why stored tensors were left in their files."""
    counts = Counter(tensor.reason for tensor in tensors)
    for reason, count in counts.items():
        yield Choice("not loaded", f"{count} tensors", reason)


def _vision(model: ModelConfig, vision: VisionWeights | None) -> Iterator[Choice]:
    if vision is not None:
        size = f"{vision.memory_bytes / 2**20:.1f} MiB"
        yield Choice("vision", size, "kept free for the tower, which is loaded when the first picture comes")
    elif model.vision is not None:
        yield Choice("vision", "none", "the files hold no tower")


def _eyes(config: VisionConfig, vision: VisionWeights, runner: Runner) -> Eyes:
    """What sees with the kernels of the language model: the two never compute at the same time."""
    assert isinstance(runner.model, Qwen)
    kernels = runner.model.kernels
    return Eyes(lambda: build_tower(config, vision, kernels))


def _converted(source: WeightSource) -> Iterator[Choice]:
    """One line for each reason why matrices are not kept in the types they are stored in."""
    if isinstance(source, GgufSource):
        for conversion in source.converted:
            yield Choice("converted", f"{len(conversion.names)} tensors to {conversion.kept}", conversion.reason)


def assemble(
    config: EngineConfig,
    model: ModelConfig,
    resolved: Resolved,
    source: WeightSource,
    vocabulary: Vocabulary,
    progress: Progress | None = None,
    begun: Loading | None = None,
) -> Engine:
    """An engine over the weights of ``source``. Call it on the thread that will step the engine."""
    kernels = make_kernels(resolved.isa, resolved.threads, resolved.device)
    spec = CacheSpec.of(model, resolved.dtype, config.kv_cache_dtype)
    page_bytes = max(1, spec.token_bytes * config.page_size)
    policy = PrefixPolicy(resolved.num_snapshots, state_pages=spec.sequence_bytes / page_bytes)
    num_slots = resolved.max_num_seqs + (policy.limit if policy.state_pages else 0)
    with memory_for("cache", "lower max_model_len or max_num_seqs, or give less with memory"):
        storage = Storage(
            spec,
            num_pages=resolved.num_pages,
            page_size=config.page_size,
            num_slots=num_slots,
            memory=kernels.zeros,
        )
    scheduler = Scheduler(
        Pool(resolved.num_pages),
        Pool(num_slots),
        page_size=config.page_size,
        max_step_tokens=config.max_step_tokens,
        policy=policy,
        finish_abandoned=config.on_disconnect == "finish",
        sparsity=model.moe.num_experts / model.moe.experts_per_token if model.moe else 1.0,
    )
    with memory_for("weights", "take a smaller model, a smaller dtype or a quantization"):
        language_model = build_model(model, source, kernels, progress=progress, begun=begun)
    runner = Runner(
        language_model,
        storage,
        page_size=config.page_size,
        chooser=kernels.chooser,
        padding=max(0, model.vocab_size - vocabulary.size),
    )
    return Engine(scheduler, runner)


def build_model(
    config: ModelConfig,
    source: WeightSource,
    kernels: Kernels,
    *,
    progress: Progress | None = None,
    begun: Loading | None = None,
) -> Qwen:
    """The model over the weights of ``source``, each piece laid out for ``kernels`` and freed before the next comes.

    What of them is on its way already is ``begun``.
    """
    shapes = {name: spec.shape for name, spec in declare(config).items() if spec.kind in MATRICES}
    dtype = source.kinds["final_norm"]
    assert not isinstance(dtype, WeightType)
    store = kernels.store(Plan(shapes, {name: source.kinds[name] for name in shapes}, dtype))
    loaded = _loaded(store, source, begun, progress)
    vectors: dict[str, Array] = {}
    for part, value in source.parts(None if loaded else progress, loaded):
        if part.name in shapes:
            store.put(part.name, part.expert, value)
        else:
            assert isinstance(value, np.ndarray)
            vectors[part.name] = kernels.place(value)
        del value  # a name would keep it while the next piece is read
    return Qwen(config, store.finish(), vectors, kernels)


def _loaded(
    store: WeightStore, source: WeightSource, begun: Loading | None, progress: Progress | None
) -> frozenset[str]:
    """The parameters that the store loads by itself. Raises CheckpointError, in the words of who reads in pieces."""
    try:
        return store.load(source.stored, begun, progress or (lambda *_: None))
    except OSError as error:
        raise CheckpointError(f"{error.filename or 'the weights'} cannot be read: {error.strerror}.") from None
    except Unloadable as error:
        for _ in source.parts(None, source.kinds.keys() - {error.name}):
            pass
        raise CheckpointError(
            f"{error.name} cannot be loaded (status {error.status}); download the files again."
        ) from None
