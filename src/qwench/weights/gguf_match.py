"""Which tensors of a GGUF file fill which parameter, checked against the declaration before anything is read. No torch.

So a load can begin while torch is still being imported: ``stored_matrices`` says where the rows lie that the native
library reads by itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence

from qwench.config import ModelConfig
from qwench.errors import CheckpointError, listed
from qwench.gguf.file import GgufFile
from qwench.gguf.header import TENSOR_TYPES, StoredTensor
from qwench.model.parameters import ParameterSpec, declare
from qwench.ops.loading import ELEMENTS, GGUF, MatrixInFile, RowsInFile
from qwench.ops.weight_types import GGUF_TYPES, OWN_TYPES, WeightType
from qwench.weights.names import Place
from qwench.weights.names_gguf import gguf_names, gguf_place, unused_gguf_reason

ADVICE = "take another quantisation of this model, such as Q4_K_M, Q8_0 or BF16"
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What the numbers of code books become: q4 nearly holds their levels, q2 those of the ternary ones.
BOOKS: Mapping[str, WeightType] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), OWN_TYPES["q4"]),
    **dict.fromkeys(("TQ1_0", "TQ2_0"), OWN_TYPES["q2"]),
}
NUMBERS = {kind.name: number for number, kind in TENSOR_TYPES.items()}


class GgufTensors:
    """``stored``: each parameter's tensors, in the order of its rows; ``unused``: the others, and why.

    Raises CheckpointError where file and declaration differ in anything.
    """

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        self.file, self.specs = file, declare(config)
        self.unused: list[tuple[StoredTensor, str]] = []
        self.stored = self._matched(config)

    def weight_type(self, name: str) -> WeightType | None:
        """The type of codes that all of a parameter's tensors have; None where they are numbers, or differ."""
        types = {tensor.type.name for tensor in self.stored[name]}
        return GGUF_TYPES.get(types.pop()) if len(types) == 1 else None

    def _matched(self, config: ModelConfig) -> dict[str, tuple[StoredTensor, ...]]:
        """Each parameter's tensors, in the order of its rows; raises if file and declaration differ in anything."""
        found: dict[Place, StoredTensor] = {}
        extra: list[StoredTensor] = []
        layers = config.num_layers
        predictors = range(layers, layers + config.num_mtp_layers)
        for tensor in self.file.tensors.values():
            place = gguf_place(tensor.name)
            reason = unused_gguf_reason(tensor.name, predictors)
            if reason is not None:
                self.unused.append((tensor, reason))
            elif place is None or place.name not in self.specs:
                extra.append(tensor)
            elif place in found:
                raise self._error(f"holds {found[place].name} and {tensor.name}, which are the same parameter")
            else:
                _check(tensor, place, self.specs[place.name])
                found[place] = tensor
        if extra:
            names = listed([f"{tensor.name} {list(tensor.shape)}" for tensor in extra])
            raise self._error(f"holds what a model of this architecture has no place for: {names}")
        return self._complete(found)

    def _complete(self, found: Mapping[Place, StoredTensor]) -> dict[str, tuple[StoredTensor, ...]]:
        stored: dict[str, tuple[StoredTensor, ...]] = {}
        missing: list[str] = []
        for name in self.specs:
            whole, halves = Place(name), [Place(name, part="gate"), Place(name, part="up")]
            present = [place for place in halves if place in found]
            if whole in found and present:
                raise self._error(f"holds {found[whole].name} and {found[present[0]].name}, the same parameter twice")
            wanted = halves if present else [whole]
            missing += [gguf_names(place) for place in wanted if place not in found]
            stored[name] = tuple(found[place] for place in wanted if place in found)
        if missing:
            raise self._error(f"lacks {listed(missing)}")
        return stored

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.file.path} {problem}; take another conversion of this model.")


def _check(tensor: StoredTensor, place: Place, spec: ParameterSpec) -> None:
    """Shape and type, before anything is read."""
    expected = spec.shape
    if place.part is not None:  # gates, or up-projections, of all experts
        experts, out, width = spec.shape
        expected = (experts, out // 2, width)
    possible = [expected]
    if place.name.endswith(".shared_gate"):  # converters differ in which axes of one they keep
        possible.append(expected[1:])
    if place.name.endswith(".conv"):
        possible.append((expected[0], 1, expected[1]))
    if tensor.shape not in possible:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)}; {list(expected)} is expected from "
            f"the metadata."
        )
    kind = tensor.type.name
    if kind in BOOKS and importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has the type {kind}, whose code book is in the gguf package; "
            f"`pip install gguf`, or {ADVICE}."
        )
    if not {kind} & (FLOATS.keys() | GGUF_TYPES.keys() | BOOKS.keys()):
        raise CheckpointError(
            f"{tensor.file}: tensor {tensor.name} has the type {kind}, which is not supported; {ADVICE}."
        )


def stored_matrices(tensors: GgufTensors, element: str | None = None) -> list[MatrixInFile]:
    """The matrices that the native library loads by itself: codes, and with ``element`` numbers, which become that."""
    found: list[MatrixInFile] = []
    for name in sorted(tensors.stored, key=lambda name: (tensors.stored[name][0].file, tensors.stored[name][0].begin)):
        spec, kind = tensors.specs[name], _kind(tensors, name, element)
        if kind is None or spec.kind in ("vector", "float32"):
            continue
        out, width = spec.shape[-2:]
        experts = [
            MatrixInFile(name, expert, kind, out, width, tuple(_rows(spec, tensors.stored[name], expert)))
            for expert in range(spec.shape[0] if spec.kind == "experts" else 1)
        ]
        if all(matrix.fits for matrix in experts):
            found += experts
    return found


def _kind(tensors: GgufTensors, name: str, element: str | None) -> WeightType | int | None:
    numbers = all(tensor.type.name in FLOATS for tensor in tensors.stored[name])
    if numbers:
        return None if element is None else ELEMENTS[element]
    return tensors.weight_type(name)


def _rows(spec: ParameterSpec, stored: Sequence[StoredTensor], expert: int) -> Iterator[RowsInFile]:
    """One expert's rows of each tensor in turn; of what has no experts all rows."""
    out = spec.shape[-2] // len(stored)
    for tensor in stored:
        size = tensor.shape[-1] // tensor.type.block * tensor.type.num_bytes * out
        name = tensor.type.name
        number = ELEMENTS[FLOATS[name]] if name in FLOATS else GGUF + NUMBERS[name]
        yield RowsInFile(tensor.file, number, out, size, (tensor.begin + expert * size,))
