"""A document of `qwench bench` with figures made by hand, for tests of what is made of one."""

from __future__ import annotations

from typing import Any

from qwench.bench.compare import OURS, Measured
from qwench.bench.document import make_document
from qwench.bench.rows import Row
from qwench.bench.subject import Choice
from qwench.device import Measurement
from qwench.ops.limits import Limits


def document() -> dict[str, Any]:
    """One row of four tokens: we take 20 a second of a limit of 40, llama.cpp 10; others took a quarter."""
    row = Row(prefill=4)
    loop = {"int8 x": Measurement((1e12,), "operations/s", "by hand")}
    cost = {"tokens": 4, "bytes": 1e8, "operations": 1e9}
    ours = {"settings": ["device cpu"], "arithmetic": "int8", "costs": [cost], "peak_memory_bytes": 2**30}
    peer = {"version": "b1", "peak_memory_bytes": 2**31}
    speeds = {OURS: [20.0, 10.0, 30.0], "llama.cpp": [10.0, 5.0, 10.0]}
    return make_document(
        Choice("nano", shape="qwen3.5:0.8b", quantization="q4"),
        {OURS: ours, "llama.cpp": peer},
        {row: Measured(speeds, {OURS: [0.2, 0.3], "llama.cpp": []})},
        {OURS: [1.0], "llama.cpp": [2.0]},
        Limits(Measurement((1e9,), "bytes/s", "by hand"), None, loop),
    )
