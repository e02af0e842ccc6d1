"""How much is asked for each goal: enough to notice within `make test-slow`, or what the goal itself says.

``QWENCH_EFFORT=goal make test-slow`` asks for the latter, which takes hours. Times are multiplied by how busy the
machine is besides, so that a promise of a quiet machine can be tested on any.
"""

from __future__ import annotations

import os

# What is counted: in `make test-slow`, and by the goal.
EFFORT = {
    "mutations": (10_000, 200_000),
    "damaged files": (2_000, 100_000),
    "disconnects": (1_000, 10_000),
    "rounds of SIGTERM": (6, 100),
    "seconds of soak": (60, 3_600),
    "seeds": (300, 100_000),
    "documented requests": (10_000, 10_000),
    "steps that fail": (8, 50),
}


def effort(name: str) -> int:
    return EFFORT[name][os.environ.get("QWENCH_EFFORT") == "goal"]


def busy() -> float:
    """By how much longer things take than on a quiet machine, roughly; at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
