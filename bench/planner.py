"""How often the planner's speeds are true: this machine is calibrated, and ten cells that were not fitted are measured.

    .venv/bin/python -m bench.planner [--rounds 3]

A cell holds if the median of what was measured lies within the predicted range; random weights of published shapes.
Prints a table, then one JSON document with every sample. The load of the machine is told, because both sides of the
comparison suffer from it, and not at the same time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Iterable
from typing import Any

from qwench.bench.calibrate import calibrate
from qwench.bench.rows import BATCH_DEPTH, Row
from qwench.bench.subject import Choice, build, measure
from qwench.device import probe
from qwench.plan.here import Calibration, this_machine
from qwench.plan.memory import Load
from qwench.plan.model import at, published
from qwench.plan.span import Span
from qwench.plan.speed import predict

CELLS: tuple[tuple[str, str, tuple[Row, ...]], ...] = (
    (
        "qwen3.5:0.8b",
        "q4",
        (
            Row(prefill=2048),
            Row(decode=16, depth=4096),
            Row(decode=16, depth=32768),
            Row(decode=16, depth=BATCH_DEPTH, batch=4),
            Row(decode=16, depth=BATCH_DEPTH, batch=16),
        ),
    ),
    (
        "qwen3.5:0.8b",
        "q8",
        (Row(prefill=1024), Row(decode=16, depth=4096), Row(decode=16, depth=BATCH_DEPTH, batch=4)),
    ),
    ("qwen3.5:2b", "q4", (Row(prefill=512), Row(decode=16))),
)


def predicted(shape: str, quantization: str, row: Row, found: Calibration) -> Span | None:
    """Tokens per second of all sequences, on the processor."""
    machine = this_machine(dataclasses.replace(probe(), nvidia_driver=False), found)
    load = Load(row.prefill or row.depth + row.decode // 2, row.batch)
    speed = predict(at(shape, published(shape).config, quantization), load, machine, found)
    return speed.prefill if row.prefill else speed.total


def measured(rounds: int) -> list[list[float]]:
    """Samples of every cell. All take turns, as in calibration, so that no cell's median is of one slow moment."""
    subjects = [
        build(Choice("nano", shape=shape, quantization=quantization, device="cpu"), rows)
        for shape, quantization, rows in CELLS
    ]
    samples: list[list[float]] = [[] for _, _, rows in CELLS for _ in rows]
    pairs = [(subject, row) for subject, (_, _, rows) in zip(subjects, CELLS, strict=True) for row in rows]
    for seed in range(rounds):
        for (subject, row), taken in zip(pairs, samples, strict=True):
            taken.append(measure(subject, row, seed))
    return samples


def compared(found: Calibration, samples: Iterable[list[float]]) -> list[dict[str, Any]]:
    """Every cell with what was predicted of it and whether that holds, as it is printed."""
    told = []
    cells = [(shape, quantization, row) for shape, quantization, rows in CELLS for row in rows]
    for (shape, quantization, row), taken in zip(cells, samples, strict=True):
        span, middle = predicted(shape, quantization, row, found), statistics.median(taken)
        assert span is not None, "a calibrated machine lacks no figure"
        name = f"{shape} {quantization}, {row.name}"
        holds = span.low <= middle <= span.high
        told.append({"cell": name, "low": span.low, "high": span.high, "samples": taken, "holds": holds})
        print(f"{name:42} {span.low:8.1f} to {span.high:8.1f}   measured {middle:8.1f}   {'yes' if holds else 'NO'}")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="samples of each cell")
    args = parser.parse_args()
    loads, found = [os.getloadavg()[0]], calibrate()
    told = compared(found, measured(args.rounds))
    loads.append(os.getloadavg()[0])
    holds = sum(cell["holds"] for cell in told)
    print(f"{holds} of {len(told)} cells hold; load {loads[0]:.1f} to {loads[1]:.1f} on {os.cpu_count()} cores")
    print(json.dumps({"calibration": dataclasses.asdict(found), "load": loads, "cells": told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
