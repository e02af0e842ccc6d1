"""This machine as a row of the table: what the system tells, and what was measured here and kept.

Knows no torch: measuring is the command's work, keeping and reading its result is this file's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwench.device import DeviceInfo
from qwench.plan.hardware import GB, THIS, Cell, Machine, load_machines
from qwench.plan.span import Span

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
MIB = 2**20
LIKE = 0.6  # bits of a weight on average that make no other precision
SHARES = ("decode", "prefill", "overlap")
VERSION = 2  # of the file; 1 told nothing of batches, so of its overlap nothing is known


@dataclass(frozen=True)
class Reached:
    """Samples of what share of the limits the engine reached with weights of so many bits, on average, and of what
    share of a batch's shorter part (reading, products) it did beside the longer; none of these in files of version 1.
    """

    bits: float
    decode: tuple[float, ...]
    prefill: tuple[float, ...]
    overlap: tuple[float, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """What ``qwench plan --calibrate`` found: limits, and the samples of what share of them the engine reached.

    Taking codes apart costs time, and wider weights are multiplied more slowly, so the shares of one precision are not
    another's: ``more`` has those of other precisions than the first, of the same two limits.
    """

    machine: str
    date: str
    bandwidth: float  # bytes per second
    arithmetic: float  # operations per second
    arithmetic_name: str
    decode: tuple[float, ...]
    prefill: tuple[float, ...]
    bits: float = 5.5
    more: tuple[Reached, ...] = ()
    overlap: tuple[float, ...] = ()
    version: int = VERSION

    @property
    def every(self) -> tuple[Reached, ...]:
        return (Reached(self.bits, self.decode, self.prefill, self.overlap), *self.more)

    def reached(self, bits: float) -> Reached:
        """With weights of so many bits: of the precision they are like, or of the two they lie between."""
        known = sorted(self.every, key=lambda each: each.bits)
        like = [each for each in known if abs(each.bits - bits) <= LIKE]
        below, above = ([each for each in known if (each.bits < bits) is side] for side in (True, False))
        near = like[:1] or [*below[-1:], *above[:1]]
        return Reached(bits, *(tuple(share for each in near for share in getattr(each, name)) for name in SHARES))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        spare = path.with_suffix(".part")
        spare.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        spare.replace(path)


def calibration_path() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwench" / "calibration.json"


def machine_key(info: DeviceInfo) -> str:
    return f"{info.cpu}, {info.threads} threads"


def read_calibration(path: Path, info: DeviceInfo) -> Calibration | None:
    """What was measured on this very machine; None where nothing was, or the file is of another machine, of a version
    to come, or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        more = tuple(Reached(**_samples(each)) for each in found.get("more", ()))
        kept = Calibration(**{"version": 1, **_samples(found), "more": more})
        shares = [share for each in kept.every for share in (*each.decode, *each.prefill, each.bits)]
        usable = kept.version <= VERSION and all(each.decode and each.prefill for each in kept.every)
        usable = usable and all(0 < number < math.inf for number in (kept.bandwidth, kept.arithmetic, *shares))
        usable = usable and all(0 <= share <= 1 for each in kept.every for share in each.overlap)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return kept if usable and kept.machine == machine_key(info) else None


def _samples(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"overlap": (), **found, **{name: tuple(found[name]) for name in SHARES if name in found}}


def this_machine(info: DeviceInfo, calibration: Calibration | None, gpus: str = "") -> Machine:
    """The CPU and its memory, or the GPUs that ``nvidia-smi`` told of, with the table's figures for their name."""
    now = "now"
    cells = {"memory_gb": Cell(Span.of(info.memory_total / GB), "this machine", now)}
    cells["usable_gb"] = Cell(Span.of(min(info.memory_available, info.memory_total) / GB), "free now", now)
    if calibration is not None:
        cells["bandwidth_gbs"] = Cell(Span.of(calibration.bandwidth / GB), "measured here", calibration.date)
        cells["bf16_tflops"] = Cell(
            Span.of(calibration.arithmetic / 1e12), calibration.arithmetic_name, calibration.date
        )
    found = [line.rsplit(",", 1) for line in gpus.splitlines() if "," in line]
    if not found:
        return Machine(THIS, f"this machine: {info.cpu}, {info.threads} threads", "cpu", cells)
    name, count = found[0][0].strip(), len(found)
    memory = sum(float(size) for _, size in found) * MIB / GB
    own = {"memory_gb": Cell(Span.of(memory), "nvidia-smi", now), "host_memory_gb": cells["usable_gb"]}
    if "bandwidth_gbs" in cells:
        own["host_bandwidth_gbs"] = cells["bandwidth_gbs"]
    short = name.upper().removeprefix("NVIDIA ").removeprefix("GEFORCE ")
    like = next((each for each in load_machines().values() if each.count == 1 and short in each.title.upper()), None)
    for cell in ("bandwidth_gbs", "bf16_tflops", "watts"):
        if like is not None and cell in like.cells:
            own[cell] = Cell(like.cells[cell].value * count, like.cells[cell].source, like.cells[cell].date)
    return Machine(THIS, f"this machine: {count} × {name}" if count > 1 else f"this machine: {name}", "gpu", own, count)


def ask_gpus(info: DeviceInfo) -> str:
    """What ``nvidia-smi`` says; nothing where there is no driver or no answer in time."""
    if not info.nvidia_driver:
        return ""
    import subprocess  # loads much that a machine without a driver need not wait for

    try:
        return subprocess.run(QUERY, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
