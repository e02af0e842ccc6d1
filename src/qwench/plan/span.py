"""A range of a quantity that is not known better: two positive ends, and the arithmetic that keeps them honest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """``low`` to ``high``, both included. All quantities are at least zero, so ends stay ends."""

    low: float
    high: float

    def __post_init__(self) -> None:
        assert 0 <= self.low <= self.high, f"{self.low} to {self.high} is no span"

    @classmethod
    def of(cls, value: float | Span) -> Span:
        return value if isinstance(value, Span) else cls(value, value)

    @classmethod
    def middle(cls, samples: Sequence[float]) -> Span:
        """The middle half of them: what is left when a quarter is taken off either end."""
        ordered, off = sorted(samples), len(samples) // 4
        return cls(ordered[off], ordered[-1 - off])

    @property
    def exact(self) -> bool:
        return self.low == self.high

    def __add__(self, other: float | Span) -> Span:
        other = Span.of(other)
        return Span(self.low + other.low, self.high + other.high)

    def __mul__(self, other: float | Span) -> Span:
        other = Span.of(other)
        return Span(self.low * other.low, self.high * other.high)

    def __truediv__(self, other: float | Span) -> Span:
        """The widest the quotient can be."""
        other = Span.of(other)
        return Span(self.low / other.high, self.high / other.low)

    def __rtruediv__(self, other: float) -> Span:
        return Span.of(other) / self

    def beside(self, other: Span, overlap: Span) -> Span:
        """How long two things take together if a share ``overlap`` of the shorter is done beside the longer: from 0,
        one after the other, to 1, the longer alone. More of either is never faster, more overlap never slower."""
        return Span(
            max(self.low, other.low) + (1 - overlap.high) * min(self.low, other.low),
            max(self.high, other.high) + (1 - overlap.low) * min(self.high, other.high),
        )

    __radd__, __rmul__ = __add__, __mul__

    def join(self, other: Span) -> Span:
        """The span that holds both."""
        return Span(min(self.low, other.low), max(self.high, other.high))
