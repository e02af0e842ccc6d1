"""Qwench's own side of a benchmark: a model in memory, and how each row is timed. Knows neither peers nor tables.

The engine runs on this thread, without client, text or server: what is timed is steps. Before a row at a depth its
sequences are put there at once: pages and states are handed out and hold the random numbers the cache was filled with,
because a step costs the same whatever they are; computing 32,768 tokens first would take minutes.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.bench.rows import WARM_STEPS, Row
from qwench.errors import ModelNotFound, QwenchError, UsageError

if TYPE_CHECKING:
    from qwench.cache.storage import Storage
    from qwench.config import EngineConfig, ModelConfig
    from qwench.engine.core import Engine
    from qwench.engine.request import Request, TokenEvent
    from qwench.engine.resolve import Resolved
    from qwench.ops.store import Kind
    from qwench.plan.work import Bits

FIRST_PROMPT = 8  # tokens of the prompt that "start to first token" reads


@dataclass(frozen=True)
class Choice:
    """What is to be measured: a model, or random weights of a shape (of its first ``layers`` layers)."""

    model: str
    shape: str | None = None
    layers: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"


@dataclass(frozen=True)
class Subject:
    """A model in memory. ``bits`` of a weight by parameter, ``arithmetic``: the type its products are made in.

    ``unread``: bytes of the head that one token leaves unread.
    """

    model: ModelConfig
    engine: Engine
    storage: Storage
    resolved: Resolved
    bits: Bits
    unread: float
    arithmetic: str
    load_seconds: float

    def read(self, row: Row) -> float:
        """Bytes of the weights that a step reads."""
        from qwench.plan.work import weight_bytes

        unread = self.unread if row.batch == 1 else 0.0
        return weight_bytes(self.model, self.bits, row.prefill or row.batch) - unread


def published_shape(name: str, layers: int | None = None) -> ModelConfig:
    """The configuration of a published model, or of its first layers. Raises ModelNotFound with the nearest names."""
    from qwench.family import nearest_names
    from qwench.plan.shapes import lookup

    found = lookup(name)
    if found is None:
        near = [each for each in nearest_names(name) if lookup(each)]  # nano is a model, not a shape
        hint = f"did you mean {' or '.join(near)}?" if near else "`qwench models` lists the shapes."
        raise ModelNotFound(f"--shape {name} is no published shape; {hint}")
    model = found.config
    if layers is None:
        return model
    if layers > model.num_layers:
        raise UsageError(f"--layers is {layers}, but {name} has {model.num_layers}; give at most that.")
    return dataclasses.replace(
        model, layer_types=model.layer_types[:layers], sparse_layers=model.sparse_layers[:layers]
    )


def model_of(choice: Choice) -> ModelConfig:
    """The configuration of what is to be measured; of a model it is read from its files."""
    from qwench.engine.client import EngineClient

    if choice.shape is not None:
        return published_shape(choice.shape, choice.layers)
    return EngineClient(plain_config(choice)).model


def window(choice: Choice) -> int:
    """Tokens the model's window holds."""
    return model_of(choice).max_positions


def build(choice: Choice, rows: Sequence[Row]) -> Subject:
    """Load the model, or draw random weights, with a cache just large enough for ``rows``."""
    from qwench.engine.client import EngineClient
    from qwench.engine.request import Vocabulary
    from qwench.engine.start import load_engine, random_engine
    from qwench.progress import Progress
    from qwench.weights.open import open_weights
    from qwench.weights.recipe import kinds_for

    start = time.perf_counter()
    model = model_of(choice)
    config = _engine_config(choice, model, rows)
    vocabulary = Vocabulary(model.vocab_size, frozenset())
    if choice.shape is None:
        client = EngineClient(config)
        with Progress("Loading", 1, delay=2.0) as bar:

            def show(done: int, total: int) -> None:
                bar.update(done / max(total, 1))

            engine, resolved = load_engine(config, model, client.files, vocabulary, show)
        kinds = open_weights(client.files, model, resolved.dtype, config.quantization).kinds
    else:
        engine, resolved = random_engine(config, model, vocabulary)
        kinds = kinds_for(model, config.quantization, resolved.dtype)
    storage = engine.runner.storage  # type: ignore[attr-defined]
    _fill(storage)
    seconds = time.perf_counter() - start
    unread = 0.0 if resolved.isa is None else _unread(model, kinds)
    subject = Subject(model, engine, storage, resolved, _bits(kinds), unread, _arithmetic(kinds), seconds)
    measure(subject, Row(decode=1), seed=0)  # what is done once only, such as taking scratch memory, is not counted
    return subject


def measure(subject: Subject, row: Row, seed: int) -> float:
    """Tokens per second of all sequences together, in one sample of ``row``."""
    return _measure_prefill(subject, row, seed) if row.prefill else _measure_decode(subject, row, seed)


def _measure_prefill(subject: Subject, row: Row, seed: int) -> float:
    """From the first step of a prompt to its first token."""
    request = _request(subject, row.prefill, 1, seed)
    told: list[str | None] = []

    def listen(event: TokenEvent) -> None:
        if event.finish_reason is not None:  # an event before it says what was reused
            told.append(event.error)

    subject.engine.add([request], [listen])
    start = time.perf_counter()
    while not told:
        subject.engine.step()
    seconds = time.perf_counter() - start
    _check(told)
    return row.prefill / seconds


def _measure_decode(subject: Subject, row: Row, seed: int) -> float:
    """Steps of ``row.batch`` sequences that know ``row.depth`` tokens and one more each, after a few uncounted ones."""
    from qwench.engine.request import Status

    engine, scheduler = subject.engine, subject.engine.scheduler
    told: list[str | None] = []
    for index in range(row.batch):
        request = _request(subject, row.depth + 1, WARM_STEPS + row.decode, seed * row.batch + index)
        engine.add([request], [lambda event: told.append(event.error)])
        scheduler.waiting.remove(request)
        pages = scheduler.pages.allocate(-(-(row.depth + 1) // scheduler.page_size))
        slots = scheduler.slots.allocate(1)
        assert pages is not None
        assert slots is not None
        request.pages, request.state_slot = pages, slots[0]
        request.computed, request.status = row.depth, Status.RUNNING
        scheduler.running.append(request)
    for _ in range(WARM_STEPS):
        engine.step()
    start = time.perf_counter()
    for _ in range(row.decode):
        engine.step()
    seconds = time.perf_counter() - start
    _check(told)
    assert scheduler.is_idle()
    return row.batch * row.decode / seconds


def _request(subject: Subject, known: int, generated: int, seed: int) -> Request:
    """A prompt of random tokens, decoded greedily and never stopped early."""
    from qwench.engine.request import Request, SamplingParams

    draw = random.Random(seed)
    return Request(
        id=seed,
        prompt_len=known,
        token_ids=[draw.randrange(subject.model.vocab_size) for _ in range(known)],
        sampling=SamplingParams(temperature=0.0),
        stop_token_ids=frozenset(),
        seed=seed,
        max_total=known + generated,
    )


def _check(errors: Sequence[str | None]) -> None:
    for error in errors:
        if error:
            raise QwenchError(f"the engine failed while it was measured: {error}")


def plain_config(choice: Choice) -> EngineConfig:
    """The operator's choices as the engine takes them, without a cache's size."""
    from qwench.config import EngineConfig

    return EngineConfig(
        model=choice.shape or choice.model,
        device=choice.device,
        dtype=choice.dtype,
        quantization=choice.quantization,
        kv_cache_dtype=choice.kv_cache_dtype,
        prefix_cache=False,
    )


def _engine_config(choice: Choice, model: ModelConfig, rows: Sequence[Row]) -> EngineConfig:
    """The operator's choices with a cache for the row that needs most. Raises UsageError where no window is so long."""
    from qwench.cache.storage import CacheSpec
    from qwench.ops.arrays import FLOAT32

    config = plain_config(choice)
    longest = max(Row(decode=1).longest, *(row.longest for row in rows))
    if longest > model.max_positions:
        raise UsageError(
            f"a row needs {longest} tokens, but the model's window is {model.max_positions}; leave it out."
        )
    sequences = max([row.batch for row in rows], default=1)
    spec = CacheSpec.of(model, FLOAT32)  # an upper bound: the type is not resolved yet
    tokens = max([row.batch * (row.longest + config.page_size) for row in rows], default=config.page_size)
    memory = (tokens + config.page_size) * spec.token_bytes + sequences * spec.sequence_bytes
    return dataclasses.replace(config, max_model_len=longest, max_num_seqs=sequences, memory=memory)


def _fill(storage: Storage) -> None:
    """Random keys, values and states: memory nobody wrote to is one page of zeros, read from the processor's cache."""
    import numpy as np

    from qwench.ops.arrays import INT8, dtype_of, like

    generator = np.random.default_rng(0)
    for arrays, spread in ((storage.keys, 1.0), (storage.values, 1.0), (storage.recurrent, 0.1)):
        for array in arrays:
            drawn = (spread * generator.standard_normal(65_521)).astype(dtype_of(array))
            if drawn.dtype == INT8:  # the scales lie among the codes: any four of these bytes are 0.01 to 0.05
                drawn = generator.integers(0x3C, 0x3E, len(drawn), np.int8)
            flat, noise = array.reshape(-1), like(array, drawn)
            for start in range(0, len(flat), len(noise)):
                flat[start : start + len(noise)] = noise[: len(flat) - start]


def _bits(kinds: Mapping[str, Kind]) -> Bits:
    """Bits of a weight of each parameter as it lies in memory."""
    from qwench.ops.weight_types import WeightType

    return {
        name: kind.bits_per_weight if isinstance(kind, WeightType) else 8.0 * kind.itemsize
        for name, kind in kinds.items()
    }


def _unread(model: ModelConfig, kinds: Mapping[str, Kind]) -> float:
    from qwench.ops.weight_types import WeightType

    head = kinds["embedding" if model.tie_embeddings else "head"]
    return head.unread_bits_of((model.vocab_size, model.hidden_size)) / 8 if isinstance(head, WeightType) else 0.0


def _arithmetic(kinds: Mapping[str, Kind]) -> str:
    """The type most products are made in, as ops/limits names it."""
    from qwench.ops.arrays import FLOAT32
    from qwench.ops.weight_types import WeightType

    if any(isinstance(kind, WeightType) for kind in kinds.values()):
        return "int8"
    return "fp32" if kinds["final_norm"] == FLOAT32 else "bf16"


def first_token(choice: Choice) -> float:
    """Load the model and read a short prompt: seconds of loading. The process that calls it is timed from outside."""
    from qwench.engine.client import EngineClient
    from qwench.engine.request import SamplingParams

    start = time.perf_counter()
    config = dataclasses.replace(plain_config(choice), max_model_len=2 * FIRST_PROMPT, max_num_seqs=1)
    client = EngineClient(config)
    client.start()
    client.wait_ready()
    seconds = time.perf_counter() - start
    sampling = SamplingParams(temperature=0.0, max_tokens=1)
    _check([event.error for event in client.submit(list(range(FIRST_PROMPT)), sampling)])
    client.close()
    return seconds


def peak_memory_bytes() -> int:
    """The most memory this process has held so far, on the device if that is a GPU."""
    import re
    import resource
    import sys

    torch = sys.modules.get("torch")  # without it there is no GPU in use
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    told = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text() if status.is_file() else "", flags=re.MULTILINE)
    if told:
        return int(told.group(1)) * 1024  # what getrusage tells begins with the peak of whoever started this process
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def commit() -> str | None:
    """The commit this file belongs to, marked if the tree has changed since; None outside a repository."""
    import subprocess

    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
