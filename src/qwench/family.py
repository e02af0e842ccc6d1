"""The published models by name: short name -> Hub id. Knows no shapes and no files.

It lies below everything else because both the locator (which finds a model) and the planner (which counts it) need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType

PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        "qwen3.5:0.8b": "Qwen/Qwen3.5-0.8B",
        "qwen3.5:2b": "Qwen/Qwen3.5-2B",
        "qwen3.5:4b": "Qwen/Qwen3.5-4B",
        "qwen3.5:9b": "Qwen/Qwen3.5-9B",
        "qwen3.5:27b": "Qwen/Qwen3.5-27B",
        "qwen3.5:35b-a3b": "Qwen/Qwen3.5-35B-A3B",
        "qwen3.5:122b-a10b": "Qwen/Qwen3.5-122B-A10B",
        "qwen3.5:397b-a17b": "Qwen/Qwen3.5-397B-A17B",
        "qwen3:0.6b": "Qwen/Qwen3-0.6B",
        "qwen3:1.7b": "Qwen/Qwen3-1.7B",
        "qwen3:4b": "Qwen/Qwen3-4B",
        "qwen3:8b": "Qwen/Qwen3-8B",
        "qwen3:14b": "Qwen/Qwen3-14B",
        "qwen3:32b": "Qwen/Qwen3-32B",
        "qwen3:30b-a3b": "Qwen/Qwen3-30B-A3B",
        "qwen3:235b-a22b": "Qwen/Qwen3-235B-A22B",
    }
)


def nearest_names(name: str, limit: int = 3) -> list[str]:
    """Published short names and Hub ids that look like ``name``, best first; empty where nothing does."""
    spelling = {known.lower(): known for pair in PUBLISHED.items() for known in pair} | {"nano": "nano"}
    return [spelling[match] for match in get_close_matches(name.lower(), spelling, n=limit, cutoff=0.5)]
