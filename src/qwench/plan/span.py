"""A range of a quantity that is not known better: two positive ends, and the arithmetic that keeps them honest."""

from __future__ import annotations

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

    __radd__, __rmul__ = __add__, __mul__

    def join(self, other: Span) -> Span:
        """The span that holds both."""
        return Span(min(self.low, other.low), max(self.high, other.high))
