"""Distributions as quantile functions, and cheap sequences of uniform numbers to ask them with.

Invariants: a distribution is a frozen value without state; ``Draws`` is the only state, one small integer, so that
each of a million pairs of hosts can have a sequence of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

_STANDARD = NormalDist()
_MASK = (1 << 64) - 1


class Draw(Protocol):
    """A distribution of seconds (or of anything else)."""

    @property
    def mean(self) -> float: ...

    def at(self, u: float) -> float:
        """The quantile of ``0 <= u < 1``."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same."""

    value: float

    @property
    def mean(self) -> float:
        return self.value

    def at(self, u: float) -> float:
        """See ``Draw.at``."""
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every value of [low, high) equally likely."""

    low: float
    high: float

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    def at(self, u: float) -> float:
        """See ``Draw.at``."""
        return self.low + u * (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Normal:
    """The bell; what is below zero counts as zero where it is a delay."""

    mean: float
    deviation: float

    def at(self, u: float) -> float:
        """See ``Draw.at``."""
        return self.mean + self.deviation * _STANDARD.inv_cdf(_open(u))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """By its median and the deviation of its logarithm: what delays over the Internet look like."""

    median: float
    sigma: float

    @property
    def mean(self) -> float:
        return self.median * math.exp(self.sigma**2 / 2)

    def at(self, u: float) -> float:
        """See ``Draw.at``."""
        return self.median * math.exp(self.sigma * _STANDARD.inv_cdf(_open(u)))


@dataclass(frozen=True, slots=True)
class Pareto:
    """A heavy tail above ``least``; ``shape`` > 1 has a mean."""

    least: float
    shape: float

    @property
    def mean(self) -> float:
        return self.least * self.shape / (self.shape - 1) if self.shape > 1 else math.inf

    def at(self, u: float) -> float:
        """See ``Draw.at``."""
        return float(self.least / (1.0 - u) ** (1.0 / self.shape))


def draw_of(value: float | Draw) -> Draw:
    """A number stands for itself."""
    return Constant(value) if isinstance(value, int | float) else value


class Draws:
    """Uniform numbers in [0, 1) from one integer (splitmix64)."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> float:
        """The next one."""
        self._state = state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK
        return ((state ^ state >> 31) >> 11) * 2.0**-53


def _open(u: float) -> float:
    """``u``, but not zero, whose quantile is infinite."""
    return max(u, 2.0**-53)
