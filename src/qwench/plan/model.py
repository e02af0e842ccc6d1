"""What is planned for: a published shape, a folder or a GGUF file, and the bits of each weight. Reads headers only.

Nothing is downloaded and no tensor is read. Knows no machine.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.config import ModelConfig
from qwench.errors import CheckpointError, ModelNotFound, UsageError
from qwench.family import nearest_names
from qwench.footprint import ITEM_BYTES
from qwench.model.parameters import ParameterKind, ParameterSpec, declare
from qwench.plan.shapes import SHAPES, Shape, lookup, text_parameters
from qwench.plan.work import is_read
from qwench.quantisation import QUANTIZATIONS
from qwench.weights.recipe import type_for

if TYPE_CHECKING:
    from qwench.gguf.file import GgufFile

PLAIN = "bf16"
PRECISIONS = (PLAIN, *QUANTIZATIONS)
HEADER_LENGTH = 8  # bytes of a safetensors file that say how long its header is
MAX_HEADER = 100_000_000
NOT_TEXT = ("model.visual.", "visual.", "mtp.", "model.mtp.")


GROUPS = {
    name: re.compile(pattern)
    for name, pattern in (
        ("embedding and head", r"embedding|head"),
        ("attention", r".*\.attention\..*"),
        ("DeltaNet", r".*\.delta\..*"),
        ("experts", r".*\.moe\.(gate_up|down)"),
        ("shared expert, router", r".*\.moe\..*"),
        ("MLP", r".*\.mlp\..*"),
        ("norms", r".*norm"),
    )
}


@dataclass(frozen=True)
class Group:
    """Weights of one purpose."""

    parameters: int
    bytes: float


@dataclass(frozen=True)
class Weights:
    """Parameters that are alike, such as one of every layer; ``name`` is that of the first.

    ``unread``: bytes that one token leaves unread on a CPU, where only the few largest logits count.
    """

    name: str
    kind: ParameterKind
    parameters: int
    bytes: float
    unread: float = 0.0


@dataclass(frozen=True)
class Subject:
    """A model in one precision. ``precision`` as told to people, ``source`` of the figures."""

    name: str
    config: ModelConfig
    precision: str
    weights: tuple[Weights, ...]
    source: str

    @property
    def dtype(self) -> str:
        """The type of activations, keys and values."""
        return self.config.dtype if self.config.dtype in ITEM_BYTES else "bfloat16"

    @functools.cached_property
    def parts(self) -> tuple[float, float]:
        """Bytes that every token reads, and bytes of all experts."""
        read = [each for each in self.weights if is_read(self.config, each.name)]
        experts = sum(each.bytes for each in read if each.kind == "experts")
        return sum(each.bytes for each in read) - experts, experts

    @functools.cached_property
    def bits(self) -> float:
        """Of a weight that is read, on average."""
        read = [each for each in self.weights if is_read(self.config, each.name)]
        return 8 * sum(each.bytes for each in read) / sum(each.parameters for each in read)

    @functools.cached_property
    def unread(self) -> float:
        return sum(each.unread for each in self.weights if is_read(self.config, each.name))

    @functools.cached_property
    def groups(self) -> Mapping[str, Group]:
        """What the weights are made of; together exactly what is loaded."""
        found = dict.fromkeys(GROUPS, Group(0, 0.0))
        for each in self.weights:
            group = next(group for group, pattern in GROUPS.items() if pattern.fullmatch(each.name))
            found[group] = Group(found[group].parameters + each.parameters, found[group].bytes + each.bytes)
        return {name: group for name, group in found.items() if group.parameters}

    @functools.cached_property
    def weight_bytes(self) -> float:
        return sum(each.bytes for each in self.weights)


@functools.lru_cache(maxsize=32)
def _census(config: ModelConfig) -> tuple[tuple[str, ParameterSpec, int], ...]:
    """Each parameter of a layer once, with how many layers have it: big models repeat a few dozen a thousand times."""
    found: dict[tuple[str, ParameterSpec], tuple[str, int]] = {}
    for name, spec in declare(config).items():
        key = name.split(".", 2)[-1], spec
        first, count = found.get(key, (name, 0))
        found[key] = first, count + 1
    return tuple((name, key[1], count) for key, (name, count) in found.items())


@functools.lru_cache(maxsize=256)
def at(name: str, config: ModelConfig, precision: str, source: str = "published shape") -> Subject:
    """A model whose matrices are rounded by the recipe of ``precision``, or kept. Raises UsageError for another one."""
    if precision not in PRECISIONS:
        raise UsageError(f"--quantization is {precision!r}; use {', '.join(PRECISIONS)}.", param="quantization")
    plain = ITEM_BYTES.get(config.dtype, 2)
    weights = []
    for each, spec, count in _census(config):
        kind, size = None if precision == PLAIN else type_for(each, spec, precision), math.prod(spec.shape)
        kept = kind.bits_of(spec.shape) / 8 if kind else size * (4 if spec.kind == "float32" else plain)
        unread = kind.unread_bits_of(spec.shape) / 8 if kind else 0.0
        weights.append(Weights(each, spec.kind, count * size, count * kept, count * unread))
    return Subject(name, config, precision, tuple(weights), source)


def published(name: str) -> Shape:
    """The shape that ``name`` means, also without its family (35b-a3b) or its active part (397b).

    Raises ModelNotFound with the nearest names.
    """
    for candidate in (name, f"qwen3.5:{name}", f"qwen3:{name}"):
        found = lookup(candidate)
        if found is not None:
            return found
    for generation in ("", "qwen3.5:", "qwen3:"):
        begin = f"{generation}{name.lower()}-"
        longer = [shape for shape in SHAPES if shape.short_name.startswith(begin)]
        if len(longer) == 1:
            return longer[0]
    sizes = {shape.short_name.partition(":")[2]: shape.short_name for shape in reversed(SHAPES)}
    near = get_close_matches(name.lower(), sizes, n=2, cutoff=0.6)
    nearest = list(dict.fromkeys([*(sizes[each] for each in near), *nearest_names(name)]))[:3]
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    raise ModelNotFound(f"{name!r} is no published model, folder or GGUF file{hint}; `qwench models` lists the family.")


def from_files(name: str, path: Path, precision: str | None) -> Subject:
    """The model in a folder or GGUF file at ``path``; without a ``precision``, as it is stored."""
    from qwench.files import open_files, read_config  # with all of GGUF, which a published shape need not wait for
    from qwench.gguf.file import GgufFile

    files = open_files(path)
    config = read_config(files)
    if precision is not None:
        return at(name, config, precision, f"{path.name}, rounded by our recipe")
    if isinstance(files, GgufFile):
        return Subject(name, config, "as stored", _gguf_weights(files, config), f"header of {path.name}")
    if config.quantised is not None:
        return Subject(name, config, "as stored", _folder_weights(path, config), f"headers in {path.name}")
    return at(name, config, PLAIN, f"config of {path.name}")


def _gguf_weights(file: GgufFile, config: ModelConfig) -> tuple[Weights, ...]:
    """As the engine keeps them: in the file's own types, and in what those without kernels are converted to."""
    from qwench.ops.weight_types import GGUF_TYPES
    from qwench.weights.gguf_match import BOOKS, FLOATS, GgufTensors

    weights, specs = [], declare(config)
    for name, tensors in GgufTensors(file, config).stored.items():
        count, bits, unread = 0, 0.0, 0.0
        for tensor in tensors:
            kind, size = tensor.type.name, math.prod(tensor.shape)
            found = GGUF_TYPES.get(kind) or BOOKS.get(kind)
            bits += found.bits_of(tensor.shape) if found else size * 8 * ITEM_BYTES[FLOATS[kind]]
            unread += found.unread_bits_of(tensor.shape) if found else 0.0
            count += size
        weights.append(Weights(name, specs[name].kind, count, bits / 8, unread / 8))
    return tuple(weights)


def _folder_weights(folder: Path, config: ModelConfig) -> tuple[Weights, ...]:
    """At the mean over all text weights, from the headers: scales and zero points lie in tensors of their own."""
    mean = sum(_text_bytes(path) for path in sorted(folder.glob("*.safetensors"))) / text_parameters(config)
    counted = ((name, spec.kind, count * math.prod(spec.shape)) for name, spec, count in _census(config))
    return tuple(Weights(name, kind, parameters, parameters * mean) for name, kind, parameters in counted)


def _text_bytes(path: Path) -> int:
    """Bytes of the tensors of one file that are not of the vision tower or the MTP head."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(HEADER_LENGTH))
            header = json.loads(stream.read(min(length, MAX_HEADER)))
            places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
            return sum(end - begin for name, (begin, end) in places.items() if not name.startswith(NOT_TEXT))
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a header that cannot be read ({error}); download it again.") from None
