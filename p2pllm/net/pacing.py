"""How much bulk may be in flight on a connection, so that a step behind it waits little: pure decisions.

Invariants: no I/O, no clock. The budget is the measured bandwidth times (the path's own round trip + the target): so
much fills the path and leaves a queue of ``target_s``. Frames are a quarter of what the path carries in ``target_s``,
so that the one under way does not undo the rest. Neither falls below a floor, or nothing could be measured.
"""

from __future__ import annotations

from collections import deque

FRAME_BYTES_MIN = 4 * 1024
FRAME_BYTES_UNKNOWN = 16 * 1024
"""Before anything was measured."""
FRAMES_MIN = 2
RATE_WINDOW_S = 2.0
"""The bandwidth is the best of so many seconds: idle moments do not count, a path that got slower does."""
SAMPLE_S = 0.15
"""Long enough that one frame more or less does not look like bandwidth."""
SAMPLE_DRAINED_S = 0.01
"""Enough when nothing is queued: then all that was sent has arrived, and no frame is half counted."""


def bulk_budget(rate: float, min_rtt_s: float, target_s: float) -> int:
    """Bytes of bulk that may be unacknowledged at ``rate`` bytes per second."""
    return max(FRAMES_MIN * bulk_frame(rate, target_s), int(rate * (min_rtt_s + target_s)))


def bulk_frame(rate: float, target_s: float) -> int:
    """Bytes of one frame of bulk; the caller bounds it by what a record holds."""
    return max(FRAME_BYTES_MIN, int(rate * target_s / 4)) if rate > 0 else FRAME_BYTES_UNKNOWN


def wait_s(excess: int, rate: float, target_s: float) -> float:
    """How long until ``excess`` bytes have drained; bounded, because a rate is only a measurement."""
    longest = target_s / 4
    return min(max(excess / rate, 0.001), longest) if rate > 0 else longest / 4


class BulkPacer:
    """Learns a connection's bandwidth from what was sent and what is still queued, and says when bulk may go."""

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s
        self.rate = 0.0
        self._best: deque[tuple[float, float]] = deque()
        self._since: tuple[float, int] | None = None

    @property
    def frame_bytes(self) -> int:
        """How large the next frame of bulk should be."""
        return bulk_frame(self.rate, self.target_s)

    def observe(self, now: float, sent: int, queued: int) -> None:
        """``sent`` bytes have been handed over since the beginning, of which ``queued`` are unacknowledged."""
        delivered = sent - queued
        if self._since is None:
            self._since = (now, delivered)
            return
        then, before = self._since
        if now - then < (SAMPLE_S if queued else SAMPLE_DRAINED_S):
            return
        self._since = (now, delivered)
        sample = max(0, delivered - before) / (now - then)
        best = self._best
        while best and best[-1][1] <= sample:
            best.pop()
        best.append((now, sample))
        while best[0][0] < now - RATE_WINDOW_S:
            best.popleft()
        self.rate = best[0][1]

    def hold_s(self, queued: int, size: int, min_rtt_s: float) -> float:
        """0.0 when ``size`` more bytes of bulk may go now; else how long to wait before asking again."""
        excess = queued + size - bulk_budget(self.rate, min_rtt_s, self.target_s)
        return 0.0 if excess <= 0 or queued == 0 else wait_s(excess, self.rate, self.target_s)
