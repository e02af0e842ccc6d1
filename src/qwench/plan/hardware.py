"""Machines as dated data: what the table says and what a user adds. A cell without a source is absent.

Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

from qwench.errors import UsageError
from qwench.plan.span import Span
from qwench.plan.tables import ASSETS, Table, read_table, span_of

Kind = Literal["gpu", "unified", "cpu", "cloud"]
THIS = "this"
# What several boards have several times; the host is there once.
ADDITIVE = ("memory_gb", "usable_gb", "bandwidth_gbs", "bf16_tflops", "watts", "price_usd", "rent_usd_hour")
HOST = ("host_memory_gb", "host_bandwidth_gbs", "disk_gbs", "idle_watts")
CELLS = (*ADDITIVE, *HOST)
PLAIN = ("name", "title", "kind", "of", "count")
GPU_SHARE = 0.9  # of a GPU's memory, as EngineConfig.gpu_memory_utilization
GB = 1e9


@dataclass(frozen=True)
class Cell:
    """One figure, where it comes from and when that was so."""

    value: Span
    source: str
    date: str


@dataclass(frozen=True)
class Machine:
    """``cells`` by name; what is not there is unknown. ``count``: boards that share the work."""

    name: str
    title: str
    kind: Kind
    cells: Mapping[str, Cell]
    count: int = 1

    def __getitem__(self, name: str) -> Span | None:
        cell = self.cells.get(name)
        return cell.value if cell else None

    @property
    def usable_bytes(self) -> float:
        """Of the fast memory, what a model may take."""
        usable, memory = self["usable_gb"], self["memory_gb"]
        if usable is not None:
            return usable.low * GB
        assert memory is not None, "a machine has memory_gb"
        return memory.low * GB * (GPU_SHARE if self.kind in ("gpu", "cloud") else 1.0)

    @property
    def host_bytes(self) -> float:
        """Slower memory beside it, where experts may lie."""
        host = self["host_memory_gb"]
        return host.low * GB if host is not None else 0.0


def load_machines(extra: Path | None = None) -> dict[str, Machine]:
    """The table, and the user's own ``extra`` over it. Raises UsageError with file, line and key."""
    machines: dict[str, Machine] = {}
    for path in (ASSETS / "hardware.toml", *([extra] if extra else [])):
        table = read_table(path)
        table.only(table.content, ("sources", "machine"), "")
        sources = table.content.get("sources", {})
        rows = table.content.get("machine", [])
        if not isinstance(rows, list) or not isinstance(sources, dict):
            raise table.error("", "machine", "must be written as [[machine]]")
        for index, row in enumerate(rows):
            machine = _machine(table, row, index, sources, machines)
            machines[machine.name] = machine
    return machines


def _machine(
    table: Table, row: Mapping[str, Any], index: int, sources: Mapping[str, str], known: Mapping[str, Machine]
) -> Machine:
    table.only(row, (*PLAIN, *CELLS), "machine", index)
    for key in ("name", "title"):
        if not isinstance(row.get(key), str):
            raise table.error("machine", key, "is missing or no text", index)
    count, base = row.get("count", 1), None
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise table.error("machine", "count", f"is {count!r}; give a whole number of at least 1", index)
    cells = {}
    if "of" in row:
        base = known.get(str(row["of"]))
        if base is None:
            raise table.error(
                "machine", "of", f"names {row['of']!r}, which no machine above has{_near(row['of'], known)}", index
            )
        cells = {name: _times(cell, count if name in ADDITIVE else 1) for name, cell in base.cells.items()}
    cells |= {name: _cell(table, row[name], name, index, sources) for name in CELLS if name in row}
    kind = row.get("kind", base.kind if base else None)
    if kind not in get_args(Kind):
        raise table.error("machine", "kind", f"is {kind!r}; use {', '.join(get_args(Kind))}", index)
    if "memory_gb" not in cells:
        raise table.error("machine", "memory_gb", "is missing; nothing can be planned without it", index)
    return Machine(row["name"], row["title"], kind, cells, count)


def _cell(table: Table, entry: object, name: str, index: int, sources: Mapping[str, str]) -> Cell:
    if not isinstance(entry, dict) or not {"value", "source"} <= entry.keys() <= {"value", "source", "date"}:
        raise table.error("machine", name, 'must be { value = ..., source = "...", date = "..." }', index)
    value = span_of(entry["value"])
    if value is None or value.high == 0:
        told = f"has the value {entry['value']!r}; give a number above 0, or [low, high]"
        raise table.error("machine", name, told, index)
    return Cell(value, str(sources.get(entry["source"], entry["source"])), str(entry.get("date", "")))


def _times(cell: Cell, count: int) -> Cell:
    return replace(cell, value=cell.value * count)


def _near(name: object, known: Iterable[str]) -> str:
    found = get_close_matches(str(name), known, n=1, cutoff=0.4)
    return f"; the nearest is {found[0]}" if found else ""


def find_machine(name: str, machines: Mapping[str, Machine]) -> Machine:
    """By its name or its title, in any case. Raises UsageError with the nearest."""
    wanted = name.strip().lower()
    for machine in machines.values():
        if wanted in (machine.name.lower(), machine.title.lower()):
            return machine
    hint = _near(wanted, machines) or f"; known are {', '.join(machines)}"
    raise UsageError(
        f"--hardware {name!r} is not in the table{hint}. Add your own with --hardware-file.", param="hardware"
    )
