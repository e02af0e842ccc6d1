"""Planned memory beside what a process takes: nano, the 0.8B shape in three precisions, a mixture of experts.

A fresh process each: weights are made, the whole cache is written to and steps are run. What Python and its libraries
took before is left out on both sides. Planned is for the native kernels.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from qwench.cli.doctor import kernels
from qwench.device import resident_bytes
from tests.meta.tree import ROOT

TOLERANCE = 0.05
PROGRAM = """
import ctypes, dataclasses, json, sys
import numpy.random, torch
import qwench.bench.side, qwench.engine.start
from qwench.bench.rows import Row
from qwench.bench.subject import Choice, build, measure
from qwench.device import resident_bytes
from qwench.engine.resolve import SMALL_MODEL
from qwench.plan.memory import Load, footprint
from qwench.plan.model import at

shape, precision, depth, layers, dtype = json.loads(sys.argv[1])
before = resident_bytes()
rows = [Row(prefill=512), Row(decode=2, depth=depth)]
quantization = None if precision == "bf16" else precision
subject = build(Choice("nano", shape, layers, dtype=dtype, quantization=quantization), rows)
for row in rows:
    measure(subject, row, seed=0)
ctypes.CDLL(None).malloc_trim(0)  # what random weights were drawn in was freed, and only kept for the next one to ask
tokens = len(subject.storage.keys[0])
planned = footprint(at("x", dataclasses.replace(subject.model, dtype=dtype), precision), Load(tokens))
print(json.dumps({"taken": resident_bytes() - before, "planned": planned.total}))
"""
CASES = [
    (None, "bf16", 4096, None, "float32"),  # nano
    ("qwen3.5:0.8b", "bf16", 512, None, "bfloat16"),
    ("qwen3.5:0.8b", "q8", 512, None, "bfloat16"),
    ("qwen3.5:0.8b", "q4", 512, None, "bfloat16"),
    ("qwen3.5:0.8b", "q4", 32768, None, "bfloat16"),
    ("qwen3.5:35b-a3b", "q4", 4096, 4, "bfloat16"),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not resident_bytes(), reason="this system does not tell what a process holds")
@pytest.mark.skipif(not kernels(), reason="the native library is not built")
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_a_plan_is_what_is_taken(case: tuple[str | None, str, int, int | None, str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(case)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=800).stdout
    found = json.loads(told.splitlines()[-1])
    assert found["taken"] == pytest.approx(found["planned"], rel=TOLERANCE)
