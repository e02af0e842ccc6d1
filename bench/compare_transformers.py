"""The table of the first measurements, which were kept in a form of their own; bench/suite.py makes newer ones."""

from __future__ import annotations

from statistics import median
from typing import Any

SIDES = ("qwench", "transformers")


def result_file(document: dict[str, Any]) -> str:
    """Where a comparison is kept, from the root of the repository."""
    return f"bench/results/{document['date'][:10]}-{(document['commit'] or 'no-commit')[:12]}.json"


def speed(document: dict[str, Any], side: str, phase: str) -> tuple[float, float]:
    """(median tokens/s, share of the machine's limit) of one side in one phase."""
    bounds = document["limits"]
    need, limit = {
        "prefill": ("flop_per_prompt_token", "flop_per_second"),
        "decode": ("bytes_per_decoded_token", "bytes_per_second"),
    }[phase]
    rate = median(sample[phase] for sample in document["sides"][side]["samples"])
    return rate, rate * bounds[need] / bounds[limit]


def table(document: dict[str, Any]) -> str:
    """The comparison in Markdown, as the README shows one."""
    work, sides = document["work"], document["sides"]
    names = " | ".join(f"{name} {sides[name]['version']}" for name in SIDES)
    lines = [f"| {work['shape']}, random weights, BF16 | {names} | ratio |", "|---|--:|--:|--:|"]
    for phase in ("prefill", "decode"):
        rates = {name: speed(document, name, phase) for name in SIDES}
        cells = " | ".join(f"{rate:.1f} tokens/s ({share:.0%} of the limit)" for rate, share in rates.values())
        lines.append(f"| {phase} {work[phase]} | {cells} | {rates['qwench'][0] / rates['transformers'][0]:.2f} |")
    peaks = [sides[name]["peak_memory_bytes"] / 2**30 for name in SIDES]
    lines.append(f"| peak memory | {peaks[0]:.2f} GiB | {peaks[1]:.2f} GiB | {peaks[0] / peaks[1]:.2f} |")
    bounds = document["limits"]
    where = f"{document['machine']['cpu']}, {work['threads']} threads, {document['date'][:10]}"
    how = f"medians of {len(sides['qwench']['samples'])} samples a side, taken in turns"
    limits = f"{bounds['flop_per_second'] / 1e12:.2f} Tflop/s in BF16 and {bounds['bytes_per_second'] / 1e9:.1f} GB/s"
    told = f"{where}; {how}. The limits, measured in the same run: {limits}. Raw samples: `{result_file(document)}`."
    return "\n".join([*lines, "", told])
