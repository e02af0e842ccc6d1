"""Every "auto" of EngineConfig decided once, each with its reason, and the size of the cache."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from qwench.cache.storage import CacheSpec
from qwench.config import EngineConfig, ModelConfig
from qwench.device import available_memory, has_bf16, probe, usable_threads
from qwench.errors import UsageError
from qwench.model.parameters import declare
from qwench.ops.arrays import DTYPES, DType
from qwench.ops.kernels import native_usable
from qwench.ops.lazy import torch
from qwench.ops.loading import ISA_VARIABLE
from qwench.ops.native import instruction_sets
from qwench.ops.store import Kind
from qwench.ops.weight_types import WeightType
from qwench.quantisation import QUANTIZATIONS
from qwench.weights.recipe import kinds_for
from qwench.weights.source import memory_bytes

DEFAULT_SEQUENCES = 16
MAX_SNAPSHOTS = 512  # each one that goes is chosen among all
# Below this many parameters a step is bound by overhead, not by bandwidth, and fp32 is as fast as BF16 and exact.
SMALL_MODEL = 100_000_000


@dataclass(frozen=True)
class Choice:
    """One resolved setting: what was chosen, and why."""

    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.value} ({self.reason})"


@dataclass(frozen=True)
class Resolved:
    """The engine's settings without any "auto"."""

    device: str
    dtype: DType
    threads: int
    max_model_len: int
    max_num_seqs: int
    num_pages: int
    num_snapshots: int  # states kept beside those of running sequences
    isa: str | None  # of the native kernels; None where torch computes
    choices: tuple[Choice, ...]


def resolve_device(config: EngineConfig) -> Choice:
    """``device`` of the operator, or CUDA where there is one. Raises UsageError where it is not there."""
    if config.device == "auto":
        if probe().nvidia_driver and torch.cuda.is_available():
            return Choice("device", "cuda", torch.cuda.get_device_name(0))
        return Choice("device", "cpu", "no CUDA device")
    kind, _, number = config.device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"device is {config.device!r}; give cpu, cuda, cuda:0 or auto.", param="device")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device is {config.device}, but PyTorch sees {torch.cuda.device_count()} CUDA devices; give another, cpu "
            "or auto.",
            param="device",
        )
    return Choice("device", config.device, "as asked")


def resolve_dtype(config: EngineConfig, model: ModelConfig) -> Choice:
    """The type of activations, and of weights that are not quantised."""
    if config.dtype != "auto":
        return Choice("dtype", config.dtype, "as asked")
    if num_parameters(model) < SMALL_MODEL:
        return Choice("dtype", "float32", "a small model is exact at no cost in speed")
    if resolve_device(config).value == "cpu" and not has_bf16():
        return Choice("dtype", "float32", "this CPU has no BF16 arithmetic")
    stored = model.dtype if model.dtype in DTYPES else "bfloat16"
    return Choice("dtype", stored, "as in the checkpoint")


def resolve_threads(model: ModelConfig) -> Choice:
    """Threads of one operation. Waiting for a second one costs a small model far more than it brings on a busy CPU."""
    if num_parameters(model) < SMALL_MODEL:
        return Choice("threads", "1", "a small model")
    return Choice("threads", str(usable_threads()), "one per core, or OMP_NUM_THREADS")


def resolve_kernels(device: str, dtype: DType) -> tuple[str | None, Choice]:
    """The native kernels' instruction set, or None. Raises UsageError where this processor lacks what is asked."""
    usable, told = native_usable(device, dtype)
    asked = os.environ.get(ISA_VARIABLE)
    if asked == "torch" or not usable:
        return None, Choice("kernels", "torch", "as asked" if asked == "torch" else told)
    if asked is None:
        return told, Choice("kernels", f"native {told}", "the best this processor has")
    if asked not in instruction_sets():
        names = ", ".join(instruction_sets())
        raise UsageError(f"{ISA_VARIABLE} is {asked!r}; this processor runs {names} and torch.", param=ISA_VARIABLE)
    return asked, Choice("kernels", f"native {asked}", "as asked")


def resolve(config: EngineConfig, model: ModelConfig, kinds: Mapping[str, Kind], loaded: int = 0) -> Resolved:
    """Decide everything for weights of ``kinds``, of which ``loaded`` bytes are in memory already.

    Raises UsageError where the operator's choices collide.
    """
    device = resolve_device(config)
    dtype = resolve_dtype(config, model)
    threads = resolve_threads(model)
    activations = DTYPES[dtype.value]
    isa, kernels = resolve_kernels(device.value, activations)
    spec = CacheSpec.of(model, activations, config.kv_cache_dtype)
    sequences = config.max_num_seqs or DEFAULT_SEQUENCES
    memory = _cache_memory(config, device.value, model, kinds, loaded)
    wanted = config.max_model_len or model.max_positions
    if wanted > model.max_positions:
        raise UsageError(
            f"max_model_len is {wanted}, but the model's window is {model.max_positions} tokens; lower it, or scale "
            "the window by YaRN fields in config.json.",
            param="max_model_len",
        )
    num_snapshots = _num_snapshots(config, spec, memory, sequences)
    states = sequences + (num_snapshots if spec.sequence_bytes else 0)
    most = (sequences + (DEFAULT_SEQUENCES if num_snapshots else 0)) * -(-wanted // config.page_size)
    num_pages = _num_pages(spec, memory - states * spec.sequence_bytes, most, config.page_size)
    fits = min(wanted, num_pages * config.page_size)
    if fits < (config.max_model_len or config.page_size):
        need = spec.token_bytes * wanted + spec.sequence_bytes * sequences
        raise UsageError(
            f"{wanted} tokens and {sequences} sequences need {_size(need)} of cache, but {_size(memory)} is there; "
            "lower max_model_len or max_num_seqs, or raise memory.",
            param="memory",
        )
    window = (
        "the model's window" if fits == model.max_positions else "as asked" if fits == wanted else "what memory holds"
    )
    used = num_pages * config.page_size * spec.token_bytes + states * spec.sequence_bytes
    held = f"{num_pages * config.page_size:,} tokens and {sequences} running states"
    kept = f"up to {num_snapshots} snapshots of prefixes" if num_snapshots else "no prefix is kept"
    choices = (
        device,
        dtype,
        resolve_weights(config, model, kinds),
        threads,
        Choice("max_model_len", f"{fits:,}", window),
        Choice("max_num_seqs", str(sequences), "as asked" if config.max_num_seqs else "default"),
        Choice("cache", _size(used), f"{held}; {kept}"),
        Choice("kv_cache_dtype", str(spec.kv_dtype), "as asked" if spec.coded else "as dtype"),
        kernels,
    )
    return Resolved(
        device.value, activations, int(threads.value), fits, sequences, num_pages, num_snapshots, isa, choices
    )


def num_parameters(model: ModelConfig) -> int:
    return sum(math.prod(spec.shape) for spec in declare(model).values())


def resolve_weights(config: EngineConfig, model: ModelConfig, kinds: Mapping[str, Kind]) -> Choice:
    """How the weights are kept: the share of each type, and what that comes to."""
    specs = declare(model)
    counts = Counter[str]()
    for name, spec in specs.items():
        kind = kinds[name]
        counts[kind.name if isinstance(kind, WeightType) else str(kind)] += math.prod(spec.shape)
    total, size = counts.total(), memory_bytes(model, kinds)
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in counts.most_common() if count / total >= 0.005)
    value = f"{_size(size)}, {8 * size / total:.2f} bits each: {shares}"
    return Choice("weights", value, f"{config.quantization} as asked" if config.quantization else "as stored")


def _cache_memory(config: EngineConfig, device: str, model: ModelConfig, kinds: Mapping[str, Kind], loaded: int) -> int:
    """Bytes for pages and states: the operator's figure, or a share of what is free once the weights are in.

    Raises UsageError where the weights themselves do not fit, with the quantization under which they would.
    """
    weight_bytes = memory_bytes(model, kinds)
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        free -= int((1 - config.gpu_memory_utilization) * total)
    else:
        free = available_memory()
    free += loaded
    if weight_bytes > free:
        raise UsageError(
            f"the weights take {_size(weight_bytes)} and {_size(max(free, 0))} of {device} memory is free; "
            f"{_what_fits(config, model, kinds, free)}.",
            param="model",
        )
    if config.memory is not None:
        return config.memory
    # On a CPU the rest is for activations and for the machine's owner.
    return free - weight_bytes if device.startswith("cuda") else (free - weight_bytes) // 4


def _what_fits(config: EngineConfig, model: ModelConfig, kinds: Mapping[str, Kind], free: int) -> str:
    """The advice to who has only ``free`` bytes: the finest quantization that leaves some room, if there is one."""
    stored_so = config.quantization is None and any(isinstance(kind, WeightType) for kind in kinds.values())
    dtype = kinds["final_norm"]
    assert not isinstance(dtype, WeightType)
    sizes = {name: memory_bytes(model, kinds_for(model, name, dtype)) for name in QUANTIZATIONS}
    fitting = [name for name in sizes if sizes[name] <= 0.9 * free]
    if stored_so or not fitting:
        return "take a smaller model"
    best = max(fitting, key=lambda name: sizes[name])
    return f"quantization {best} needs {_size(sizes[best])}"


def _num_snapshots(config: EngineConfig, spec: CacheSpec, memory: int, sequences: int) -> int:
    """Snapshots of prefixes: a third of the memory that is not for running states or for the window asked for."""
    if not config.prefix_cache:
        return 0
    if not spec.sequence_bytes:  # without a state they are pages alone
        return MAX_SNAPSHOTS
    free = memory - sequences * spec.sequence_bytes
    window = -(-(config.max_model_len or 0) // config.page_size) * config.page_size * spec.token_bytes
    return max(0, min(MAX_SNAPSHOTS, min(free // 3, free - window) // spec.sequence_bytes))


def _num_pages(spec: CacheSpec, memory: int, most: int, page_size: int) -> int:
    """Pages that fit into ``memory``, at most as many as could be used."""
    if spec.token_bytes == 0:
        return most
    return max(0, min(most, memory // (page_size * spec.token_bytes)))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
