"""Which server should move to other blocks, if any: decided by all alike, without a coordinator and without a herd.

Invariants: pure and deterministic: all who see the same swarm come to the same answer, so of all of them at most one
moves. Its move opens no gap and lowers no block's throughput below the swarm's weakest, neither while it loads nor
after. Each move makes the sorted throughputs of all blocks lexicographically larger, so moving comes to an end.

    servers = [Placed(ann.peer, ann.span, ann.throughput.inference, ann.state is ONLINE) for ann in view.servers(model)]
    move = next_move(servers, num_blocks, balance_quality)
    if move is not None and move.peer == me: ...      # announce the new span, then load it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pllm.server.placement import weakest_window
from p2pllm.types import PeerId, Span

UNITS = 1 << 32
"""What the fastest server counts for. Sums of integers are exact: no two orders of adding disagree, and no rounding
makes servers move for ever."""
ROUNDS_MAX = 64
"""Of everybody moving once; a handful is enough, and whatever is reached by then is no worse than before."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Placed:
    """A server as the swarm sees it.

    Attributes:
        span: what it serves, or has claimed and is loading.
        throughput: tokens per second through its span; 0, as one that was never measured: counts for next to nothing.
        online: it serves; False for one that loads: it counts, but can neither move nor hold a block for others.
    """

    peer: PeerId
    span: Span
    throughput: float
    online: bool = True


@dataclass(frozen=True, slots=True)
class Move:
    """``peer`` should serve ``span`` from now on."""

    peer: PeerId
    span: Span


@dataclass(frozen=True, slots=True)
class Balance:
    """How evenly a model is served, in units of the fastest server's throughput.

    Attributes:
        weakest: throughput of the weakest block, which is that of the swarm.
        settled: the same, if everybody moved greedily until nobody wanted to.
        even: the same, if all servers' capacity were spread evenly: nothing can be better.
    """

    weakest: float
    settled: float
    even: float


def settle(servers: Sequence[Placed], num_blocks: int) -> tuple[Span, ...]:
    """Where everybody would end if all moved, one after the other and for free, to their weakest windows."""
    swarm = _Swarm(servers, num_blocks)
    swarm.settle()
    return tuple(Span(start, start + length) for start, length in zip(swarm.starts, swarm.lengths, strict=True))


def balance(servers: Sequence[Placed], num_blocks: int) -> Balance:
    """See ``Balance``."""
    swarm = _Swarm(servers, num_blocks)
    weakest, even = int(swarm.strengths.min()), float(swarm.strengths.mean())
    swarm.settle()
    return Balance(weakest / UNITS, int(swarm.strengths.min()) / UNITS, even / UNITS)


def next_move(servers: Sequence[Placed], num_blocks: int, quality: float) -> Move | None:
    """The one move that this swarm wants now; None: it is well as it is.

    Args:
        quality: nothing moves while the swarm's throughput is at least this share of what greedy moves would reach.
    """
    swarm = _Swarm(servers, num_blocks)
    if swarm.good_enough(quality):
        return None
    best: tuple[bytes, int, PeerId] | None = None
    move: Move | None = None
    for i in swarm.restless():
        start = swarm.wish(i)
        if start is not None:
            server = servers[i]
            key = swarm.after(i, start), -abs(start - server.span.start), server.peer
            if best is None or key > best:
                best, move = key, Move(server.peer, Span(start, start + swarm.lengths[i]))
    if move is None or swarm.good_enough(quality, settled=True):
        return None
    return move


def should_move(me: PeerId, servers: Sequence[Placed], num_blocks: int, quality: float) -> Span | None:
    """Where ``me`` should move now; None: nowhere, or it is somebody else's turn. As ``next_move``, but quicker."""
    swarm = _Swarm(servers, num_blocks)
    mine = next((i for i, server in enumerate(servers) if server.peer == me), None)
    if mine is None or swarm.good_enough(quality) or swarm.wish(mine) is None:
        return None
    move = next_move(servers, num_blocks, quality)
    return move.span if move is not None and move.peer == me else None


class _Swarm:
    """Spans and throughputs as arrays; ``settle`` moves them."""

    def __init__(self, servers: Sequence[Placed], num_blocks: int) -> None:
        fastest = max((server.throughput for server in servers), default=0.0) or 1.0
        self.units = [max(1, round(server.throughput / fastest * UNITS)) for server in servers]
        self.starts = [min(server.span.start, num_blocks - 1) for server in servers]
        self.lengths = [
            min(server.span.end, num_blocks) - start for server, start in zip(servers, self.starts, strict=True)
        ]
        self.servers = servers
        self.strengths: Ints = np.zeros(num_blocks, dtype=np.int64)
        self.holders: Ints = np.zeros(num_blocks, dtype=np.int64)
        """Per block, how many serve it now."""
        for i, server in enumerate(servers):
            self._window(i)[:] += self.units[i]
            if server.online:
                self.holders[self.starts[i] : self.starts[i] + self.lengths[i]] += 1
        # Large ones first: small ones even out what they leave.
        self._order = sorted(range(len(servers)), key=lambda i: (-self.units[i] * self.lengths[i], servers[i].peer))

    def _window(self, i: int) -> Ints:
        return self.strengths[self.starts[i] : self.starts[i] + self.lengths[i]]

    def good_enough(self, quality: float, settled: bool = False) -> bool:
        """Whether the weakest block is near that of an even swarm, or with ``settled`` of what moving would make."""
        weakest, reached = int(self.strengths.min()), float(self.strengths.mean())
        if settled:
            self.settle()
            reached = float(self.strengths.min())
        return weakest >= quality * reached

    def restless(self) -> list[int]:
        """Who may have a better window.

        Where every block of a server would, without it, be weaker than all others, no window is weaker than its own.
        """
        weakest = self.strengths.min()
        return [i for i, units in enumerate(self.units) if self._window(i).max() - units >= weakest]

    def wish(self, i: int) -> int | None:
        """Where server ``i`` may go for the better of all; None: it stays."""
        start = self.better_start(i) if self.servers[i].online else None
        if start is None:
            return None
        here, length = self.starts[i], self.lengths[i]
        left = np.array([block for block in range(here, here + length) if not start <= block < start + length])
        others = self.holders[left] > 1
        # Also while it loads: what it leaves stays at least as strong as the weakest block is now.
        weakest = int(self.strengths.min())
        if others.all() and (self.strengths[left] - self.units[i] >= weakest).all():
            return start
        return None

    def better_start(self, i: int) -> int | None:
        """Where server ``i`` would go; None: it stays."""
        units, length, here = self.units[i], self.lengths[i], self.starts[i]
        self._window(i)[:] -= units
        start = weakest_window(self.strengths, length)
        better = start != here and _sorted_key(self.strengths[start : start + length]) < _sorted_key(self._window(i))
        self._window(i)[:] += units
        return start if better else None

    def after(self, i: int, start: int) -> bytes:
        """The swarm with server ``i`` at ``start``, as something that is larger the better it is."""
        strengths = self.strengths.copy()
        strengths[self.starts[i] : self.starts[i] + self.lengths[i]] -= self.units[i]
        strengths[start : start + self.lengths[i]] += self.units[i]
        return _sorted_key(strengths)

    def settle(self) -> None:
        """Everybody moves, one after the other, until nobody wants to."""
        for _ in range(ROUNDS_MAX):
            moved = False
            for i in self._order:
                if self._window(i).max() - self.units[i] < self.strengths.min():
                    continue  # see ``restless``
                start = self.better_start(i)
                if start is not None:
                    self._window(i)[:] -= self.units[i]
                    self.starts[i] = start
                    self._window(i)[:] += self.units[i]
                    moved = True
            if not moved:
                return


def _sorted_key(strengths: Ints) -> bytes:
    """Compares as the sorted strengths do."""
    return np.sort(strengths).astype(">i8").tobytes()
