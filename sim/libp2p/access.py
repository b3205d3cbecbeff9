"""A host's way into the network: one queue up, one down, shared by all of its connections.

Invariants: connections take turns on the uplink, one piece each, so that none waits for another one's backlog. A
downlink begins with the first byte of a piece, not after its last: two links in a row cost the slower one's time.
Rates are asked for at every piece, so that an access may change while bytes are under way.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Protocol

import trio

from sim.links import Links, wire_bytes
from sim.timers import Timers

PIECE_BYTES = 16 * 1024


class Sender(Protocol):
    """A connection that wants to send."""

    def take(self, size_max: int) -> bytes:
        """Its next bytes; none when it has no more."""
        ...

    def leave(self, piece: bytes, took_s: float) -> None:
        """They have left."""
        ...


class Uplink:
    """The sending side of a host."""

    def __init__(self, name: str, links: Links, timers: Timers) -> None:
        self._name = name
        self._links = links
        self._timers = timers
        self._waiting: deque[Sender] = deque()
        self._busy = False

    @property
    def unlimited(self) -> bool:
        """Whether bytes leave at once."""
        return self._links.access(self._name).up_bytes_per_s is None and not self._busy

    def offer(self, sender: Sender) -> None:
        """``sender`` has bytes, and waits for its turn."""
        self._waiting.append(sender)
        if not self._busy:
            self._serve()

    def _serve(self) -> None:
        while self._waiting and not self._busy:
            sender = self._waiting.popleft()
            piece = sender.take(PIECE_BYTES)
            if piece:
                self._busy = True
                rate = self._links.access(self._name).up_bytes_per_s
                took_s = wire_bytes(len(piece)) / rate if rate else 0.0
                self._timers.after(took_s, partial(self._left, sender, piece, took_s))

    def _left(self, sender: Sender, piece: bytes, took_s: float) -> None:
        self._busy = False
        self._waiting.append(sender)  # it may have more
        sender.leave(piece, took_s)
        if not self._busy:
            self._serve()


class Downlink:
    """The receiving side of a host."""

    def __init__(self, name: str, links: Links) -> None:
        self._name = name
        self._links = links
        self._free_at = 0.0

    @property
    def full(self) -> bool:
        """Whether the queue before it takes no more."""
        queue_s = self._links.access(self._name).queue_s
        return self._free_at - trio.current_time() > queue_s

    def pass_at(self, size_bytes: int, took_s: float) -> float:
        """When a piece is through whose last byte comes now, ``took_s`` after its first."""
        now, rate = trio.current_time(), self._links.access(self._name).down_bytes_per_s
        begins_at = max(self._free_at, now - took_s)
        self._free_at = max(self._free_at, now, begins_at + wire_bytes(size_bytes) / rate if rate else now)
        return self._free_at
