"""A benchmark as one document: every raw sample, medians, limits and shares of them, ratios, and how to do it again.

Also the document as a table, for a terminal and in Markdown. Measures nothing but the machine's limits.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qwench.bench.compare import OURS, Measured, Samples
from qwench.bench.cost import Cost
from qwench.bench.rows import Row
from qwench.bench.subject import Choice, commit

if TYPE_CHECKING:
    from qwench.ops.limits import Limits

QUIET = 0.05  # of the processors: what a machine without other work spends on itself
FIRST = "start to first token"


def make_document(
    choice: Choice,
    sides: Mapping[str, dict[str, Any]],
    measured: Mapping[Row, Measured],
    first: Samples,
    limits: Limits,
) -> dict[str, Any]:
    """``sides`` are the facts of each; ours hold what the rows cost."""
    from qwench import __version__
    from qwench.device import probe

    ours = dict(sides[OURS])
    costs = [Cost(**each) for each in ours.pop("costs")]
    name, peak = _peak(limits, ours["arithmetic"])
    rows = []
    for (row, taken), cost in zip(measured.items(), costs, strict=True):
        most, by = cost.limit(limits.reads.best, peak)
        rows.append(
            {
                "name": row.name,
                **vars(row),
                "bytes": cost.bytes,
                "operations": cost.operations,
                "limit_tokens_per_second": most,
                "limited_by": by,
                "sides": {
                    side: {**_speed(values, most), "others": taken.others[side]}
                    for side, values in taken.speeds.items()
                    if values
                },
                "ratios": _ratios(taken.speeds, slower_is_more=False),
            }
        )
    return {
        "qwench": __version__,
        "commit": commit(),
        "command": ["qwench", *(_portable(word) for word in sys.argv[1:])],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": dataclasses.asdict(probe()),
        "subject": {
            key: _portable(value) if isinstance(value, str) else value
            for key, value in dataclasses.asdict(choice).items()
            if value is not None
        },
        "limits": {**dataclasses.asdict(limits), "arithmetic_used": name},
        "sides": {**sides, OURS: ours},
        "rows": rows,
        "first_token": {
            "sides": {side: {"seconds": median(values), "samples": values} for side, values in first.items() if values},
            "ratios": _ratios(first, slower_is_more=True),
        },
    }


def _portable(word: str) -> str:
    """Without the name of whoever ran it, and without the folders that only that machine has."""
    return re.sub(r"(^|=)/.*/", r"\1", word.replace(str(Path.home()), "~"))


def _peak(limits: Limits, kind: str) -> tuple[str, float]:
    """The arithmetic that bounds weights of this type; where a type has no loop of its own, the next wider one."""
    for each in (kind, "bf16", "fp32"):
        found = limits.peak(each)
        if found is not None:
            return found[0], found[1].best
    raise AssertionError("a machine without arithmetic")


def _speed(values: Sequence[float], most: float) -> dict[str, Any]:
    return {"tokens_per_second": median(values), "samples": list(values), "share_of_limit": median(values) / most}


def _ratios(samples: Samples, *, slower_is_more: bool) -> dict[str, dict[str, Any]]:
    """How many times as fast we are as each other side: the ratio of medians, and that of each round."""
    ours, found = samples.get(OURS, []), {}
    for name, theirs in samples.items():
        if name != OURS and ours and theirs:
            over, under = (theirs, ours) if slower_is_more else (ours, theirs)
            rounds = [a / b for a, b in zip(over, under, strict=True)] if len(over) == len(under) else []
            found[name] = {"median": median(over) / median(under), "rounds": rounds}
    return found


def render(document: Mapping[str, Any]) -> list[str]:
    """The document for a terminal."""
    limits, sides = document["limits"], document["sides"]
    peers = [name for name in sides if name != OURS]
    lines = [title(document), f"  {', '.join(sides[OURS]['settings'])}"]
    for row in document["rows"]:
        for name, speed in row["sides"].items():
            raw = " ".join(f"{each:.4g}" for each in speed["samples"])
            share = (
                f"{speed['share_of_limit']:6.1%} of the {row['limited_by']} limit" if name == OURS else _told(row, name)
            )
            who = f"{name:17}" if peers else ""
            lines.append(f"  {row['name']:18}{who}{speed['tokens_per_second']:9.1f} tokens/s  {share}   ({raw})")
    for name, started in document["first_token"]["sides"].items():
        raw = " ".join(f"{each:.3g}" for each in started["samples"])
        share = "" if name == OURS else _told(document["first_token"], name)
        lines.append(f"  {FIRST:20} {name:14}{started['seconds']:9.2f} s  {share}   ({raw})")
    for name, facts in sides.items():
        loaded = f", in memory after {facts['load_seconds']:.1f} s" if "load_seconds" in facts else ""
        lines.append(f"  {name:17} {facts['peak_memory_bytes'] / 2**30:.2f} GiB of memory at its peak{loaded}")
    reads, used = limits["reads"], limits["arithmetic_used"]
    peak = max(limits["arithmetic"][used]["samples"])
    lines.append(f"  limits: {max(reads['samples']) / 1e9:.1f} GB/s ({reads['method']}),")
    lines.append(f"          {peak / 1e12:.2f} T operations/s ({limits['arithmetic'][used]['method']})")
    return [*lines, *([f"  {_disturbed(document)}"] if _disturbed(document) else [])]


def _disturbed(document: Mapping[str, Any]) -> str:
    """A sentence where other processes were busy too: a ratio then says more than a speed."""
    shares = [each for row in document["rows"] for speed in row["sides"].values() for each in speed["others"]]
    if not shares or median(shares) < QUIET:
        return ""
    return f"Other processes took {median(shares):.0%} of the processors meanwhile (median; at most {max(shares):.0%})."


def _told(row: Mapping[str, Any], side: str) -> str:
    return f"we are {row['ratios'][side]['median']:.2f} times as fast" if side in row["ratios"] else ""


def title(document: Mapping[str, Any]) -> str:
    """What was measured."""
    subject = document["subject"]
    name = f"{subject['shape']}, random weights" if "shape" in subject else Path(subject["model"]).name
    layers = f", its first {subject['layers']} layers" if "layers" in subject else ""
    return f"{name}{layers}, {subject.get('quantization', 'as stored')}"


def table(document: Mapping[str, Any]) -> str:
    """The document in Markdown, as the README shows one: our speed with its share of the limit, and each ratio."""
    sides = document["sides"]
    peers = [name for name in sides if name != OURS]
    heads = "".join(f" {name} | ratio |" for name in peers)
    lines = [f"| {title(document)} | qwench {document['qwench']} |{heads}", "|---|--:|" + "--:|--:|" * len(peers)]
    for row in document["rows"]:
        ours = row["sides"][OURS]
        cells = (
            f"{ours['tokens_per_second']:.1f} tokens/s ({ours['share_of_limit']:.0%} of the {row['limited_by']} limit)"
        )
        for name in peers:
            cells += _cells(row, name, "tokens_per_second", "tokens/s")
        lines.append(f"| {row['name']} | {cells} |")
    first = document["first_token"]
    if OURS in first["sides"]:
        cells = f"{first['sides'][OURS]['seconds']:.2f} s" + "".join(
            _cells(first, name, "seconds", "s") for name in peers
        )
        lines.append(f"| {FIRST} | {cells} |")
    memory = {name: facts["peak_memory_bytes"] / 2**30 for name, facts in sides.items()}
    cells = "".join(f" | {memory[name]:.2f} GiB | {memory[OURS] / memory[name]:.2f}" for name in peers)
    return "\n".join([*lines, f"| peak memory | {memory[OURS]:.2f} GiB{cells} |"])


def _cells(row: Mapping[str, Any], name: str, field: str, unit: str) -> str:
    if name not in row["sides"] or name not in row["ratios"]:
        return " | | "
    digits = 1 if unit == "tokens/s" else 2
    return f" | {row['sides'][name][field]:.{digits}f} {unit} | {row['ratios'][name]['median']:.2f}"


def where(document: Mapping[str, Any]) -> str:
    """On which machine, when, and against which limits."""
    limits, machine = document["limits"], document["machine"]
    reads, used = max(limits["reads"]["samples"]) / 1e9, limits["arithmetic_used"]
    peak = max(limits["arithmetic"][used]["samples"]) / 1e12
    count = max(len(row["sides"][OURS]["samples"]) for row in document["rows"])
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {document['date'][:10]}; medians of {count} samples a side, "
        f"taken in turns. The limits, measured in the same run: {reads:.1f} GB/s, {peak:.2f} T operations/s ({used})."
    ) + (f" {_disturbed(document)}" if _disturbed(document) else "")
