"""How much bulk may be in flight on a connection, so that a step behind it waits little: pure decisions.

Invariants: no I/O, no clock. The budget is the measured bandwidth times (the path's own round trip + the target): so
much fills the path and leaves a queue of ``target_s``. It never falls below one frame, or nothing would be measured.
"""

from __future__ import annotations

from collections import deque

BUDGET_BYTES_MIN = 64 * 1024
RATE_WINDOW_S = 2.0
"""The bandwidth is the best of so many seconds: idle moments do not count, a path that got slower does."""
SAMPLE_S_MIN = 0.01


def bulk_budget(rate: float, min_rtt_s: float, target_s: float) -> int:
    """Bytes of bulk that may be unacknowledged at ``rate`` bytes per second."""
    return max(BUDGET_BYTES_MIN, int(rate * (min_rtt_s + target_s)))


def wait_s(excess: int, rate: float, target_s: float) -> float:
    """How long until ``excess`` bytes have drained; bounded, because a rate is only a measurement."""
    if rate <= 0:
        return target_s / 10
    return min(max(excess / rate, 0.001), target_s / 4)


class BulkPacer:
    """Learns a connection's bandwidth from what was sent and what is still queued, and says when bulk may go."""

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s
        self.rate = 0.0
        self._rates: deque[tuple[float, float]] = deque()
        self._since: tuple[float, int] | None = None

    def observe(self, now: float, sent: int, queued: int) -> None:
        """``sent`` bytes have been handed over since the beginning, of which ``queued`` are unacknowledged."""
        delivered = sent - queued
        if self._since is None:
            self._since = (now, delivered)
            return
        then, before = self._since
        if now - then < SAMPLE_S_MIN or delivered <= before:
            return
        self._since = (now, delivered)
        rate = (delivered - before) / (now - then)
        while self._rates and self._rates[0][0] < now - RATE_WINDOW_S:
            self._rates.popleft()
        while self._rates and self._rates[-1][1] <= rate:
            self._rates.pop()
        self._rates.append((now, rate))
        self.rate = self._rates[0][1]

    def rest(self) -> None:
        """Nothing is in flight: the time until the next byte says nothing about the path."""
        self._since = None

    def hold_s(self, queued: int, size: int, min_rtt_s: float) -> float:
        """0.0 when ``size`` more bytes of bulk may go now; else how long to wait before asking again."""
        excess = queued + size - bulk_budget(self.rate, min_rtt_s, self.target_s)
        return 0.0 if excess <= 0 or queued == 0 else wait_s(excess, self.rate, self.target_s)
