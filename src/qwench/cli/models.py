"""``qwench models``: the family as a table: parameters, bytes at several precisions, cache and state sizes.

Prints what plan/shapes computes; loads no torch and opens no file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qwench.footprint import CacheShape
from qwench.plan import shapes
from qwench.plan.shapes import SHAPES, Shape

BITS = (16, 8, 4, 3, 2)
BOLD, DIM, PLAIN = "\033[1m", "\033[2m", "\033[0m"
NOTES = (
    "params, GB  the whole checkpoint, with vision tower and MTP head; scales of a",
    "            quantised file come on top",
    "active      parameters that one token is multiplied with",
    "KV/token    BF16; state: FP32, once per sequence however long",
    "",
    "`nano` is built in; any other model is one `qwench chat NAME` away.",
)


@dataclass(frozen=True)
class Column:
    """One column: the ``group`` over it, its ``title``, its width and what it prints of a shape."""

    group: str
    title: str
    width: int
    cell: Callable[[Shape], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document with exact numbers instead")


def run(args: argparse.Namespace) -> int:
    if args.json:
        print(json.dumps({"models": [_facts(shape) for shape in SHAPES]}))
    else:
        styled = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print("\n".join(_table(styled)))
    return 0


def _facts(shape: Shape) -> dict[str, object]:
    config = shape.config
    total, kept = shapes.total_parameters(config), _kept(shape)
    return {
        "name": shape.short_name,
        "hub_id": shape.hub_id,
        "model_type": config.model_type,
        "layers": config.num_layers,
        "full_attention_layers": config.layer_types.count(shapes.FULL),
        "hidden_size": config.hidden_size,
        "max_positions": config.max_positions,
        "parameters": total,
        "text_parameters": shapes.text_parameters(config),
        "vision_parameters": shapes.vision_parameters(config),
        "mtp_parameters": shapes.mtp_parameters(config),
        "active_parameters": shapes.active_parameters(config),
        "bytes": {str(bits): shapes.bytes_at(total, bits) for bits in BITS},
        "kv_bytes_per_token": kept.token_bytes,
        "recurrent_state_bytes": kept.recurrent_bytes,
        "conv_state_bytes": kept.conv_bytes,
    }


def _kept(shape: Shape) -> CacheShape:
    return CacheShape.of(shape.config, "bfloat16")


def _table(styled: bool) -> list[str]:
    bold, dim, plain = (BOLD, DIM, PLAIN) if styled else ("", "", "")
    columns = list(_columns())
    groups = itertools.groupby(columns, key=lambda column: column.group)
    over = "".join(group.rjust(sum(column.width for column in members)) for group, members in groups)
    lines = [f"{dim}{over.rstrip()}{plain}", f"{bold}{_row([column.title for column in columns], columns)}{plain}"]
    for _, family in itertools.groupby(SHAPES, key=lambda shape: shape.short_name.partition(":")[0]):
        lines += [_row([column.cell(shape) for column in columns], columns) for shape in family]
        lines.append("")
    return lines + [f"{dim}{note}{plain}" for note in NOTES]


def _row(cells: list[str], columns: list[Column]) -> str:
    first = cells[0].ljust(columns[0].width)
    return first + "".join(cell.rjust(column.width) for cell, column in zip(cells[1:], columns[1:], strict=True))


def _columns() -> Iterator[Column]:
    yield Column("", "model", 18, lambda shape: shape.short_name)
    yield Column("billions", "params", 7, lambda shape: _short(shapes.total_parameters(shape.config) / 1e9))
    yield Column("billions", "active", 7, lambda shape: _short(shapes.active_parameters(shape.config) / 1e9))
    for bits in BITS:
        yield Column("GB of weights, by bits", str(bits), 6, _weights_in_gb(bits))
    yield Column("KiB", "KV/token", 10, lambda shape: f"{_kept(shape).token_bytes / shapes.KiB:g}")
    yield Column("MiB", "state", 7, _state_in_mib)


def _weights_in_gb(bits: int) -> Callable[[Shape], str]:
    return lambda shape: _short(shapes.bytes_at(shapes.total_parameters(shape.config), bits) / 1e9)


def _state_in_mib(shape: Shape) -> str:
    state = _kept(shape).recurrent_bytes
    return f"{state / shapes.MiB:g}" if state else "-"


def _short(number: float) -> str:
    """Three figures where that needs decimals: 0.87, 2.27, 27.8, 397."""
    decimals = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{decimals}f}"
