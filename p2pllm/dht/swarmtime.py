"""Swarm time: what most clocks say, so that one wrong clock, ours or another's, does no harm.

Invariants: pure; bounded; each peer has one vote, whatever it sends. Peers that were reached outvote strangers, since
anybody can mint strangers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from statistics import median

from p2pllm.types import PeerId

PEERS_MAX = 256
NEWCOMER_SHARE = 16
"""Of so many further ones one takes the oldest one's place."""
SAME_S = 0.5
"""Times that differ by less are the same vote: by so much they differ from one way of a record to another."""
QUORUM = 3
"""So many reached peers decide among themselves."""
UNHEARD_SHARE = 16
"""Fewer new votes than one of so many cannot move the median far: they are counted with the next ones."""


class SwarmTime:
    """How far the swarm's wall clocks are from ours, in seconds; positive when ours is slow."""

    def __init__(self) -> None:
        self._met: OrderedDict[PeerId, float] = OrderedDict()
        self._strangers: OrderedDict[PeerId, float] = OrderedDict()
        self._offset = 0.0
        self._refused = 0
        self._unheard = 0
        """Votes that are not in ``_offset`` yet."""

    def note(self, peer: PeerId, offset_s: float, reached: bool) -> None:
        """A record of ``peer`` says that its clock is ahead of ours by so much."""
        votes, others = (self._met, self._strangers) if reached else (self._strangers, self._met)
        if abs(votes.get(peer, math.inf) - offset_s) < SAME_S:
            return
        if len(votes) >= PEERS_MAX and peer not in votes:
            self._refused = (self._refused + 1) % NEWCOMER_SHARE
            if self._refused:
                return
        others.pop(peer, None)
        votes[peer] = offset_s
        votes.move_to_end(peer)
        if len(votes) > PEERS_MAX:
            votes.popitem(last=False)
        self._unheard += 1

    def mark_reached(self, peer: PeerId) -> None:
        """From now on the vote of ``peer`` counts as that of somebody we know."""
        if peer in self._strangers:
            self.note(peer, self._strangers[peer], True)

    def offset_s(self) -> float:
        """The median offset; our own clock has a vote too."""
        few = len(self._met) < QUORUM
        if self._unheard * UNHEARD_SHARE > len(self._met) + few * len(self._strangers):
            offsets: Iterable[float] = self._met.values()
            if few:
                offsets = (*self._met.values(), *self._strangers.values())
            self._offset = median((0.0, *offsets))
            self._unheard = 0
        return self._offset
