"""Our own format: every array comes back to the bit, and what config.json says wrongly is one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwench.errors import ConfigError
from qwench.fields import Fields
from qwench.ops.arrays import dtype_of
from qwench.ops.weight_types import OWN_TYPES, WeightType
from qwench.quantisation import Scheme, StoredQuantisation, read_quantisation
from qwench.weights.formats import own
from qwench.weights.formats.layout import Unreadable
from qwench.weights.formats.safetensors import ITEM_BYTES
from qwench.weights.packed import TYPES
from qwench.weights.quantise import quantise

KINDS = [pytest.param(kind, id=name) for name, kind in OWN_TYPES.items()]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_one_string_of_bits_a_row(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 64), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    packed = own.pack_bits(codes, bits)
    assert packed.shape == (5, 64 * bits // 8)
    for row, stored in zip(codes.tolist(), packed.tolist(), strict=True):
        assert int.from_bytes(bytes(stored), "little") == sum(code << (bits * at) for at, code in enumerate(row))
    assert torch.equal(own.unpack_bits(packed, bits), codes)


@pytest.mark.parametrize("width", [48, 256, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_every_array_comes_back(kind: WeightType, width: int) -> None:
    codes = quantise(torch.randn(7, width, generator=torch.Generator().manual_seed(0)), kind)
    scheme = Scheme("own", type=kind.name)
    stored = {f"_{name}": array for name, array in own.encode(codes).items()}
    for tensor in own.layout(scheme, 7, width):
        ((types, shape),) = tensor.forms
        assert stored[tensor.suffix].shape == shape
        assert TYPES[types[0]] == str(dtype_of(stored[tensor.suffix]))
    assert stored.keys() == {tensor.suffix for tensor in own.layout(scheme, 7, width)}
    found = own.decode(stored, scheme, 7, width)
    assert (found.type, found.width, found.factor) == (codes.type, codes.width, codes.factor)
    assert all(torch.equal(found.arrays[name], codes.arrays[name]) for name in codes.arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_takes_the_bits_that_are_told(kind: WeightType) -> None:
    size = sum(shape[0] * shape[1] * ITEM_BYTES[dtype] for _, dtype, shape in own.arrays(kind, 4, 512))
    assert 8 * size / (4 * 512) == kind.bits_per_weight - (0.25 if kind.table else 0)  # powers of two take a byte


@pytest.mark.parametrize(("name", "type_name"), [("_scales", "q8"), ("_super_scales", "q4"), ("_super_mins", "q3")])
def test_a_scale_that_is_no_number_is_refused(name: str, type_name: str) -> None:
    codes = quantise(torch.ones(2, 256), OWN_TYPES[type_name])
    stored = {f"_{array}": value.clone() for array, value in own.encode(codes).items()}
    stored[name][1, 0] = float("nan")
    with pytest.raises(Unreadable, match=f"{name} holds a number that is not finite"):
        own.decode(stored, Scheme("own", type=type_name), 2, 256)


def read(section: dict[str, Any]) -> StoredQuantisation | None:
    fields = Fields({"quantization_config": {"quant_method": "qwench", **section}}, "config.json")
    return read_quantisation(fields, fields)


def test_endings_lead_to_types() -> None:
    found = read(
        {"version": 1, "types": {"q4": ["mlp.up_proj.weight", "mlp.experts.*.up_proj.weight"], "q6": ["embed"]}}
    )
    assert found is not None
    for module, expected in (
        ("model.layers.3.mlp.up_proj.weight", "q4"),
        ("model.layers.3.mlp.experts.17.up_proj.weight", "q4"),
        ("embed", "q6"),
        ("model.embed", "q6"),
        ("model.other_embed", None),
        ("model.layers.3.mlp.up_proj.weight.more", None),
    ):
        scheme = found.scheme_of(module)
        assert (scheme and scheme.type) == expected


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"types": {}}, r"quantization_config\.version is missing"),
        ({"version": 2, "types": {}}, r"version is 2; this version of qwench reads 1"),
        ({"version": 1}, r"types is missing; it says which tensors have which type"),
        ({"version": 1, "types": {"q7": []}}, r"types\.q7 is no type; known are q8"),
        ({"version": 1, "types": {"q4": "all"}}, r"types\.q4 is .*; it must be a list"),
    ],
)
def test_what_config_says_wrongly_is_one_sentence(section: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read(section)
