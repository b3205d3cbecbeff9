"""How long a step may take before its server counts as silent, from what its steps took so far.

Invariants: pure; no clock. The bound is generous while little is known, never below a floor that ordinary hiccups of
machines and networks need, never above the configured cap. A step that is more work than all those seen gets more time
in proportion; one that is less work gets no less than they took: fixed costs do not shrink.
"""

from __future__ import annotations

import math
from collections import deque

SAMPLES_MAX = 32
SAMPLES_MIN = 3
"""Fewer say nothing: the first steps warm up caches, allocators and connections."""
FACTOR = 5.0
"""How many times what its slowest steps took: another client's prefill may stand before us more than once."""
SLOWEST = 0.95
CONTEXT_TOKENS = 4096
"""Attention over so many cached tokens costs about as much as all the rest of a block."""


def work(tokens: int, context: int) -> float:
    """A step's size: its new tokens, each the dearer the more cached tokens it attends to.

    Args:
        tokens: new tokens, summed over rows.
        context: cached tokens of the longest row.
    """
    return max(1, tokens) * (1.0 + context / CONTEXT_TOKENS)


class StepTimes:
    """What the last steps of one server took."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)

    def took(self, size: float, wall_s: float) -> None:
        """A step of ``size`` (see ``work``) was answered after ``wall_s``."""
        self._samples.append((size, wall_s))

    def forget(self) -> None:
        """What was seen no longer holds: be generous again."""
        self._samples.clear()

    def timeout_s(self, size: float, floor_s: float, cap_s: float) -> float:
        """How long to wait for a step of ``size``."""
        if len(self._samples) < SAMPLES_MIN:
            return cap_s
        expected = sorted(wall_s * max(1.0, size / seen) for seen, wall_s in self._samples)
        slowest = expected[math.ceil(SLOWEST * len(expected)) - 1]
        return min(cap_s, max(floor_s, FACTOR * slowest))
