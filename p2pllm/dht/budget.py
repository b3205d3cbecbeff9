"""How much one peer may ask of us: token buckets, bounded in number.

Invariants: pure, ``now`` is an argument. A peer that was forgotten because too many came after it starts afresh.
"""

from __future__ import annotations

from collections import OrderedDict

from p2pllm.types import PeerId

PEERS_MAX = 4096


class Budget:
    """``burst`` units at once, refilled at ``per_s`` units a second, for each peer."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()

    def take(self, peer: PeerId, units: float, now: float) -> float:
        """0 when ``peer`` may have ``units`` now, and they are taken; else the seconds until it may."""
        left, at = self._left.pop(peer, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_s)
        wait = max(0.0, (min(units, self._burst) - left) / self._per_s)
        self._left[peer] = (left if wait else left - min(units, self._burst), now)
        if len(self._left) > PEERS_MAX:
            self._left.popitem(last=False)
        return wait
