"""Qwench runs Qwen3.5 and Qwen3 on your own hardware. Its public names; importing this loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwench.engine.request import SamplingParams
    from qwench.llm import LLM

__all__ = ["LLM", "SamplingParams", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Load ``LLM`` and ``SamplingParams`` on first use (PEP 562)."""
    if name == "LLM":
        from qwench.llm import LLM

        return LLM
    if name == "SamplingParams":
        from qwench.engine.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'qwench' has no attribute {name!r}; its public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
