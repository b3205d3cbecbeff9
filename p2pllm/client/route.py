"""The shortest chain of spans through a set of servers.

Invariants: pure, NumPy only. A chain covers its range without overlap, in order, and meets no server twice; a server
may be entered and left in the middle of its span. Among all such chains the result is the cheapest (ties go to the
candidate listed first, so callers shuffle to spread load). What a hop costs beyond its blocks is one number per
server, ``enter_s``: round trip, overhead, queue, and a penalty where cache room is short.

The core is a dynamic program over block borders, vectorised over servers: ``inside[s]`` is the cheapest way to stand at
the current border with server ``s`` having computed the last block. It allows a server to be left and entered again;
where the optimum does that, a short branch and bound over "its run ends before", "begins after" or "covers" the block
between its two visits removes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from p2pllm.errors import CoverageError
from p2pllm.types import PeerId, Span

BRANCHES_MAX = 60
"""Programs solved to rid a chain of repeated servers; beyond that the best chain found so far is good enough."""

_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]
_Run = tuple[int, int, int]
"""(candidate index, first border, last border)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One server as the planner sees it.

    Attributes:
        enter_s: what a step pays for passing through this server at all.
        block_s: what it pays per block.
    """

    peer: PeerId
    span: Span
    enter_s: float
    block_s: float


@dataclass(frozen=True, slots=True)
class Hop:
    """One server's part of a chain: ``span`` lies within what the server serves."""

    peer_id: PeerId
    span: Span


@dataclass(frozen=True, slots=True)
class Plan:
    """A chain and what one step through it is expected to take.

    Attributes:
        numerics: the numerics class that the chain was planned within; empty when any would do.
    """

    hops: tuple[Hop, ...]
    cost_s: float
    numerics: str = ""

    @property
    def borders(self) -> tuple[int, ...]:
        """Every block border at which hidden states travel, both ends included."""
        return (self.hops[0].span.start, *(hop.span.end for hop in self.hops))


def uncovered(spans: Iterable[Span], whole: Span) -> tuple[int, ...]:
    """The blocks of ``whole`` that are in none of ``spans``."""
    change = np.zeros(whole.end + 1, dtype=np.int64)
    for span in spans:
        if span.start < whole.end:
            change[span.start] += 1
            change[min(span.end, whole.end)] -= 1
    served = np.cumsum(change)
    return tuple(block for block in whole if served[block] == 0)


def name_blocks(blocks: Sequence[int]) -> str:
    """Blocks as people write them: ``block 3``, ``blocks 0-3 and 7``."""
    runs: list[list[int]] = []
    for block in sorted(blocks):
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    names = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    text = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return ("block " if len(blocks) == 1 else "blocks ") + text


def shortest_chain(candidates: Sequence[Candidate], whole: Span) -> Plan:
    """The cheapest chain of ``candidates`` through ``whole``.

    Raises:
        CoverageError: no candidate serves some of the blocks; the message names them.
    """
    missing = uncovered((c.span for c in candidates), whole)
    if missing:
        raise CoverageError(f"nobody serves {name_blocks(missing)} of {whole.end}", missing)
    starts = np.array([c.span.start for c in candidates])
    ends = np.array([c.span.end for c in candidates])
    blocks = np.arange(whole.start, whole.end)[:, None]
    serves = (starts <= blocks) & (blocks < ends)  # [blocks, servers]
    enter = np.array([c.enter_s for c in candidates], dtype=np.float64)
    block = np.array([c.block_s for c in candidates], dtype=np.float64)
    runs, cost = _without_repeats(serves, enter, block)
    hops = tuple(Hop(candidates[s].peer, Span(whole.start + a, whole.start + b)) for s, a, b in runs)
    return Plan(hops, cost)


def _solve(serves: _Mask, enter: _Floats, block: _Floats) -> tuple[list[_Run], float]:
    """The dynamic program; cost is infinite (and the chain empty) where a block has no server."""
    blocks = len(serves)
    entered = np.empty_like(serves)
    last = np.empty(blocks, dtype=np.int64)
    inside, best = np.full(len(enter), np.inf), 0.0
    for b in range(blocks):
        fresh = best + enter
        np.less(fresh, inside, out=entered[b])
        np.minimum(inside, fresh, out=inside)
        inside += block
        inside[~serves[b]] = np.inf
        last[b] = inside.argmin()
        best = float(inside[last[b]])
    if math.isinf(best):
        return [], best
    runs: list[_Run] = []
    end = blocks
    while end > 0:
        server, start = int(last[end - 1]), end - 1
        while not entered[start, server]:
            start -= 1
        runs.append((server, start, end))
        end = start
    return runs[::-1], best


def _repeat(runs: Sequence[_Run]) -> tuple[int, int] | None:
    """Indices of the first two visits to the same server; None when all differ."""
    seen: dict[int, int] = {}
    for i, (server, _, _) in enumerate(runs):
        if server in seen:
            return seen[server], i
        seen[server] = i
    return None


def _without_repeats(serves: _Mask, enter: _Floats, block: _Floats) -> tuple[list[_Run], float]:
    """The cheapest chain that visits no server twice."""
    best: list[_Run] = []
    best_cost = math.inf
    waiting = [serves]
    for _ in range(BRANCHES_MAX):
        if not waiting:
            break
        mask = waiting.pop()
        runs, cost = _solve(mask, enter, block)
        if cost >= best_cost:
            continue
        repeat = _repeat(runs)
        if repeat is None:
            best, best_cost = runs, cost
            continue
        merged, merged_cost = _merge(runs, enter, block)
        if merged_cost < best_cost:
            best, best_cost = merged, merged_cost
        server, gap = runs[repeat[0]][0], runs[repeat[0]][2]
        before, after, through = mask.copy(), mask.copy(), mask.copy()
        before[gap:, server] = False
        after[: gap + 1, server] = False
        through[gap, :] = False
        through[gap, server] = True
        waiting += [before, after, through]
    return best, best_cost


def _merge(runs: Sequence[_Run], enter: _Floats, block: _Floats) -> tuple[list[_Run], float]:
    """A chain without repeats, made by staying on a server until its last visit; its span always allows that."""
    merged: list[_Run] = []
    i = 0
    while i < len(runs):
        server, start, _ = runs[i]
        i = max(j for j in range(i, len(runs)) if runs[j][0] == server)
        merged.append((server, start, runs[i][2]))
        i += 1
    return merged, float(sum(enter[s] + block[s] * (b - a) for s, a, b in merged))
