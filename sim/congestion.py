"""TCP's congestion window on one direction of a connection, as far as throughput depends on it.

A connection begins with ten packets per round trip and doubles; after a loss the window is halved and grows by one
packet per round trip (Reno). Every piece is acknowledged for itself, as with selective acknowledgements. Ways on which
nothing is ever lost have no such window, unless the experiment asks for slow start.

Limits of the model: losses are seen when the repeated piece is acknowledged, a round trip late; CUBIC and BBR, which
real hosts use, grow faster over long ways and lose less; a window that nobody fills does not grow.

Invariants: no task and no timer; acknowledgements that have arrived are counted when the sender asks for room.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

from sim.links import MSS_BYTES
from sim.queues import Piece

WINDOW_INITIAL_BYTES = 10 * MSS_BYTES
WINDOW_LEAST_BYTES = 2 * MSS_BYTES
IDLE_S = 1.0
"""After so long without data the window is what it was at the beginning."""


class Congestion:
    """The window of one direction. ``back_s``: how long an acknowledgement travels."""

    def __init__(self, back_s: float) -> None:
        self.window_bytes = float(WINDOW_INITIAL_BYTES)
        self._threshold = math.inf
        self._back_s = back_s
        self._flight: list[tuple[float, int, Piece]] = []
        self._in_flight = 0
        self._peak = 0
        self._sent = 0
        self._sent_at = 0.0
        self._recovered_at = -math.inf

    def room(self, now: float) -> float:
        """Bytes that may leave now."""
        self._acknowledge(now)
        if not self._flight and now - self._sent_at > IDLE_S:
            self.window_bytes = min(self.window_bytes, WINDOW_INITIAL_BYTES)
        return self.window_bytes - self._in_flight

    def piece_bytes(self, now: float) -> int:
        """How much should leave at once: small beside the window, as a loss holds back the whole of it."""
        return int(max(2 * MSS_BYTES, min(self.room(now), self.window_bytes / 4)))

    def fits(self, size: int, now: float) -> bool:
        """Whether so many bytes may leave now; with nothing under way, anything may."""
        return size <= self.room(now) or not self._flight

    def sent(self, piece: Piece, now: float) -> None:
        """A piece has left."""
        self._sent += 1
        self._sent_at = now
        heappush(self._flight, (piece.arrival + self._back_s, self._sent, piece))
        self._in_flight += piece.size
        self._peak = max(self._peak, self._in_flight)

    @property
    def next_s(self) -> float:
        """The earliest moment at which there may be more room."""
        return self._flight[0][0] if self._flight else 0.0

    def _acknowledge(self, now: float) -> None:
        while self._flight and self._flight[0][0] <= now:
            _, number, piece = heappop(self._flight)
            piece.arrived(now)
            heard_at = piece.arrival + self._back_s
            if piece.settled and heard_at <= now:
                self._in_flight -= piece.size
                self._count(piece, now)
            else:  # it takes longer than it seemed
                heappush(self._flight, (heard_at, number, piece))

    def _count(self, piece: Piece, now: float) -> None:
        if piece.losses:
            if piece.left_at > self._recovered_at:  # one event per round trip, however many packets it cost
                self._recovered_at = now
                before = min(self.window_bytes, self._peak)
                self._threshold = max(before / 2, WINDOW_LEAST_BYTES)
                self.window_bytes = self._threshold
                self._peak = self._in_flight
        elif self._peak >= self.window_bytes / 2:
            if self.window_bytes < self._threshold:
                self.window_bytes += piece.size
            else:
                self.window_bytes += MSS_BYTES * piece.size / self.window_bytes
