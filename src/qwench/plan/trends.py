"""What published laws say of waiting, as ranges with their validity. Nobody's prices are forecast here."""

from __future__ import annotations

from dataclasses import dataclass

from qwench.plan.span import Span

DOUBLING_MONTHS = Span(3.0, 5.0)
DENSING = (
    "Densing law (arXiv 2412.04315, Nature Machine Intelligence 7, 2025): the best ratio of quality to parameters "
    "doubled every 3.3 to 3.5 months from February 2023 to April 2025, 4.8 before ChatGPT; here 3 to 5. It is an upper "
    "envelope of base models on five benchmarks, compressed models usually lie below it, and it says nothing of "
    "hardware or rent: in 2026 those rose."
)
ATLAS = (
    "ATLAS (arXiv 2510.22037): a law of pre-training, seen up to 8 B parameters. Nobody who runs a model pays it; "
    "count the tokens your own text takes instead (--text)."
)
PHI_OVER_ALPHA, DATA_EXPONENT, COMPUTE_EXPONENT = 0.243, 0.728, 0.97


@dataclass(frozen=True)
class Wait:
    """After ``months``: how many times fewer parameters the same quality takes, and how many that would be."""

    months: float
    fewer: Span
    parameters: Span


def density(months: float) -> Span:
    """How many times the quality per parameter grows in ``months``."""
    return Span(2 ** (months / DOUBLING_MONTHS.high), 2 ** (months / DOUBLING_MONTHS.low))


def wait(parameters: float, months: float) -> Wait:
    fewer = density(months)
    return Wait(months, fewer, parameters / fewer)


def languages(ratio: float) -> tuple[float, float, float]:
    """ATLAS's what-if: parameters, data and compute at equal loss for ``ratio`` times the languages."""
    return ratio**PHI_OVER_ALPHA, ratio**DATA_EXPONENT, ratio**COMPUTE_EXPONENT
