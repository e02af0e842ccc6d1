"""Prints the tables of docs/accuracy.md: our types and recipes beside llama.cpp's of about the same size.

make oracle && .venv/bin/python tools/accuracy.py F32.gguf      nano as a GGUF file, as tests/gguf/export.py writes it
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import llama  # noqa: E402 - needs the path above
from tests.accuracy import LAYERS, RECIPES, SORTS, TYPES, Receipts, bits_of, drawn, lost, ours  # noqa: E402


def types() -> None:
    print("| ours | bits | llama.cpp's | bits |", " | ".join(f"{sort}: ours / theirs" for sort in SORTS), "|")
    print("|---|---|---|---|" + "---|" * len(SORTS))
    weights = [[drawn(sort, width) for width in LAYERS.values()] for sort in SORTS]
    for own, others in TYPES.items():
        found = [sum(lost(weight, ours(weight, own)) for weight in layers) / len(layers) for layers in weights]
        for theirs in others:
            pairs = []
            for mine, layers in zip(found, weights, strict=True):
                other = sum(lost(weight, llama.rounded(weight, theirs)) for weight in layers) / len(layers)
                pairs.append(f"{mine:.4f} / {other:.4f} = {mine / other:.2f}")
            print(f"| {own} | {bits_of(own)} | {theirs} | {llama.bits_per_weight(theirs)} |", " | ".join(pairs), "|")


def recipes(nano: Path, folder: Path) -> None:
    receipts = Receipts(folder)
    print("\n| | MB | KL, nats | first choices |\n|---|---|---|---|")
    for recipe, mixes in RECIPES.items():
        rows = [(recipe, receipts.recipe_bytes(recipe), receipts.of_recipe(recipe))]
        for mix in mixes:
            path = llama.quantised_file(nano, folder / f"{mix}.gguf", mix)
            rows.append((mix, llama.tensor_bytes(path), receipts.of_file(path)))
        for name, size, receipt in rows:
            print(f"| {name} | {size / 1e6:.2f} | {receipt.divergence:.4f} | {receipt.agreement:.1%} |")


if __name__ == "__main__":
    types()
    with tempfile.TemporaryDirectory() as name:
        recipes(Path(sys.argv[1]), Path(name))
