"""``qwench show``: what a model's files hold, by their headers alone: types, sizes, and a quantised one's receipt."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwench.config import ModelConfig
    from qwench.files import ModelFiles
    from qwench.gguf.file import GgufFile


@dataclass(frozen=True)
class Stored:
    """A stored matrix or vector: its type, how many numbers it stands for and the bytes it takes."""

    type: str
    numbers: int
    num_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a folder, a GGUF file, a short name or Hub id")
    parser.add_argument("--json", action="store_true", help="print one JSON document with exact numbers instead")
    parser.add_argument("--offline", action="store_true", help="never use the network to find the model")


def run(args: argparse.Namespace) -> int:
    from qwench.files import open_files, read_config
    from qwench.weights.locate import locate

    path = locate(args.model, offline=args.offline)
    files = open_files(path)
    document = describe(path, files, read_config(files))
    print(json.dumps(document) if args.json else "\n".join(render(document)))
    return 0


def describe(path: Path, files: ModelFiles, config: ModelConfig) -> dict[str, Any]:
    """The facts as one document."""
    from qwench.gguf.file import GgufFile

    stored = list(_of_gguf(files) if isinstance(files, GgufFile) else _of_folder(files, config))
    types: dict[str, dict[str, Any]] = {}
    for each in stored:
        row = types.setdefault(each.type, {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += each.numbers
        row["bytes"] += each.num_bytes
    for row in types.values():
        row["bits_per_weight"] = 8 * row["bytes"] / max(row["parameters"], 1)
    raw = {} if isinstance(files, GgufFile) else _section(files)
    return {
        "path": str(path),
        "format": "GGUF" if isinstance(files, GgufFile) else f"safetensors{_method(config)}",
        "architecture": config.model_type,
        "layers": config.num_layers,
        "parameters": sum(each.numbers for each in stored),
        "bytes": sum(each.num_bytes for each in stored),
        "recipe": raw.get("recipe"),
        "types": types,
        "receipt": raw.get("receipt"),
    }


def _method(config: ModelConfig) -> str:
    return f", {config.quantised.method}" if config.quantised is not None else ""


def _section(folder: Path) -> dict[str, Any]:
    from qwench.fields import read_json

    found = read_json(folder / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else {}


def _of_gguf(files: GgufFile) -> Iterable[Stored]:
    for tensor in files.tensors.values():
        yield Stored(tensor.type.name, math.prod(tensor.shape), tensor.num_bytes)


def _of_folder(folder: Path, config: ModelConfig) -> Iterable[Stored]:
    """Tensors; the parts of a packed matrix count as one."""
    from qwench.weights.formats.safetensors import open_checkpoint
    from qwench.weights.packed import gather

    tensors = open_checkpoint(folder).tensors
    packed = gather(tensors, config.quantised)
    parts = {part.name for matrix in packed.values() for part in matrix.parts.values()}
    for matrix in packed.values():
        kind = matrix.kind
        bits = kind.bits if kind is not None else 8
        codes = next(iter(matrix.parts.values()))
        yield Stored(kind.name if kind is not None else "fp8", codes.num_bytes * 8 // bits, matrix.num_bytes)
    for tensor in tensors.values():
        if tensor.name not in parts:
            yield Stored(tensor.dtype, math.prod(tensor.shape), tensor.num_bytes)


def render(document: dict[str, Any]) -> list[str]:
    """The document for people."""
    size, count = document["bytes"], document["parameters"]
    recipe = f", recipe {document['recipe']}" if document["recipe"] else ""
    shape = f"{document['architecture']}, {document['layers']} layers, {count / 1e6:,.1f} million parameters stored"
    lines = [
        f"{document['path']}: {document['format']}{recipe}",
        f"  {shape}, {size / 1e6:,.1f} MB, {8 * size / max(count, 1):.2f} bits each",
        f"  {'type':10}{'tensors':>8}{'share':>8}{'bits':>8}{'MB':>12}",
    ]
    for name, row in sorted(document["types"].items(), key=lambda each: -each[1]["parameters"]):
        share = row["parameters"] / max(count, 1)
        lines.append(
            f"  {name:10}{row['tensors']:8}{share:8.1%}{row['bits_per_weight']:8.2f}{row['bytes'] / 1e6:12,.1f}"
        )
    receipt = document["receipt"]
    if receipt:
        lines.append(
            f"  receipt: over the {receipt['tokens']} tokens of {receipt['text']} the mean KL divergence from the "
            f"original is {receipt['divergence']:.5f} nats, {receipt['agreement']:.1%} of first choices are the same"
        )
    return lines
