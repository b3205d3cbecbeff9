"""A set of peers from which chance picks some, without looking at all of them.

Invariants: pure, ``rng`` is an argument; adding, leaving and picking cost the same in a large swarm as in a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from p2pllm.types import PeerId

SPARE_PICKS = 8


class Roster:
    """Peers, each once."""

    def __init__(self) -> None:
        self._peers: list[PeerId] = []
        self._place: dict[PeerId, int] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._place

    def __iter__(self) -> Iterator[PeerId]:
        return iter(self._peers)

    def add(self, peer: PeerId) -> None:
        """``peer`` is one of them."""
        if peer not in self._place:
            self._place[peer] = len(self._peers)
            self._peers.append(peer)

    def discard(self, peer: PeerId) -> None:
        """``peer`` is none of them (any more)."""
        place = self._place.pop(peer, None)
        if place is not None:
            last = self._peers.pop()
            if last != peer:
                self._peers[place] = last
                self._place[last] = place

    def pick(self, rng: Random, count: int, fine: Callable[[PeerId], bool]) -> list[PeerId]:
        """Up to ``count`` different ones that are ``fine``, by chance; fewer only where there are no more."""
        if len(self._peers) > 4 * (count + SPARE_PICKS):
            found: dict[PeerId, None] = {}
            for _ in range(2 * (count + SPARE_PICKS)):
                peer = rng.choice(self._peers)
                if fine(peer):
                    found[peer] = None
                if len(found) == count:
                    return list(found)
        able = [peer for peer in self._peers if fine(peer)]
        return rng.sample(able, min(count, len(able)))
