"""Is the peer still there? Pings at every interval; a peer from whom nothing came since one is lost.

Invariants: any byte counts as life, not only the answer, so that a congested path is not taken for a dead one. What
arrived while this machine slept is read before it judges anybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from p2pllm.net.yamux.frames import ACK, PING, SYN, Frame

if TYPE_CHECKING:
    from p2pllm.net.yamux.connection import YamuxConnection

WAKE_GRACE_S = 0.05


class Heartbeat:
    """The round trips of one connection."""

    def __init__(self, conn: YamuxConnection) -> None:
        self._conn = conn
        self._number = 0
        self._asked_at = trio.current_time()
        self.heard_at = self._asked_at
        self.rtt_s = 0.0
        """Smoothed; 0.0 while unknown."""
        self.min_rtt_s = 0.0
        """The least ever: the path without queues."""

    def heard(self) -> None:
        """Something arrived."""
        self.heard_at = trio.current_time()

    def on_ping(self, frame: Frame) -> None:
        """The peer asks, or answers."""
        if frame.flags & SYN:
            self._conn.control(PING, ACK, 0, frame.length)
        elif frame.flags & ACK and frame.length == self._number:
            sample = trio.current_time() - self._asked_at
            self.rtt_s = sample if self.rtt_s == 0.0 else 0.75 * self.rtt_s + 0.25 * sample
            self.min_rtt_s = min(sample, self.min_rtt_s or sample)

    async def run(self) -> str:
        """Ping until the peer is silent; why the connection is over."""
        interval_s, timeout_s = self._conn.config.heartbeat_interval_s, self._conn.config.heartbeat_timeout_s
        while True:
            self._number = (self._number + 1) & 0xFFFFFFFF
            self._asked_at = trio.current_time()
            self._conn.control(PING, SYN, 0, self._number)
            await trio.sleep(min(interval_s, timeout_s))
            if self.heard_at < self._asked_at:
                await trio.sleep_until(self._asked_at + timeout_s)
            if self.heard_at < self._asked_at:
                await trio.sleep(WAKE_GRACE_S)
            if self.heard_at < self._asked_at:
                return f"the peer has been silent for {timeout_s:g} s"
            await trio.sleep_until(self._asked_at + interval_s)
            self._conn.sweep()
