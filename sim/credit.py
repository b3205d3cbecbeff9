"""Flow control of one direction of a stream: how much its sender may send before the receiver has read.

The product's rule (yamux): 256 KiB first; credit comes back when half of the window was read, one latency later, and a
window that is used up within four round trips is doubled, up to 4 MiB, while the connection's pool lasts. With a fixed
window credit comes back with every read, so that a flow carries at most one window per round trip.

Invariants: no task and no timer; what is on its way back is a queue that the sender looks into.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW_BYTES = 256 * 1024
"""What a sender may send unread at first, as in the product's yamux."""
WINDOW_BYTES_MAX = 4 * 1024 * 1024
POOL_BYTES = 16 * 1024 * 1024
"""By so much all windows of one end of a connection may grow together."""
GROWTH_ROUND_TRIPS = 4
RTT_LEAST_S = 0.001


class Pool:
    """Window that the streams of one end of a connection may borrow."""

    __slots__ = ("free_bytes",)

    def __init__(self) -> None:
        self.free_bytes = POOL_BYTES

    def lend(self, wanted: int) -> int:
        """As much of it as there is."""
        lent = min(wanted, self.free_bytes)
        self.free_bytes -= lent
        return lent


class Credit:
    """The sender's credit and the receiver's rule for giving it back."""

    __slots__ = ("_fixed", "_pool", "_released", "_returning", "_target", "_updated_at", "room")

    def __init__(self, now: float, pool: Pool, fixed_bytes: int | None = None) -> None:
        self.room = fixed_bytes or WINDOW_BYTES
        """Bytes that the sender may send now."""
        self._fixed = fixed_bytes is not None
        self._pool = pool
        self._target = self.room
        self._released = 0
        self._updated_at = now
        self._returning: deque[tuple[float, int]] = deque()

    def consumed(self, size: int, now: float, latency_s: float, rtt_s: float) -> bool:
        """The receiver has read ``size`` bytes; whether credit goes back, which arrives ``latency_s`` from now."""
        self._released += size
        if not self._fixed and self._released < self._target // 2:
            return False
        more, self._released = self._released, 0
        within = now - self._updated_at < GROWTH_ROUND_TRIPS * max(rtt_s, RTT_LEAST_S)
        if not self._fixed and within and self._target < WINDOW_BYTES_MAX:
            lent = self._pool.lend(min(self._target, WINDOW_BYTES_MAX - self._target))
            self._target += lent
            more += lent
        self._updated_at = now
        self._returning.append((now + latency_s, more))
        return True

    def collect(self, now: float) -> None:
        """Take what has come back by now."""
        while self._returning and self._returning[0][0] <= now:
            self.room += self._returning.popleft()[1]

    @property
    def next_s(self) -> float:
        """When more comes back, as far as the receiver has read."""
        return self._returning[0][0] if self._returning else math.inf

    def close(self) -> None:
        """The receiver is done: what it had borrowed serves other streams."""
        if not self._fixed:
            self._pool.free_bytes += self._target - WINDOW_BYTES
            self._target = WINDOW_BYTES
