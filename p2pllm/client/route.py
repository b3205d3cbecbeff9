"""The shortest chain of spans through a set of servers.

Invariants: pure, NumPy only. A chain covers its range without overlap, in order, and meets no server twice; a server
may be entered and left in the middle of its span. Among all such chains the result is the cheapest (ties go to the
server listed first, so callers who want to spread load make costs differ a little).

What a step pays: at each server ``enter_s`` (the way there from the client, queue, overhead), ``block_s`` per block,
and ``leave_s`` (the way back). Where a server's output goes straight to the next one, and that way is known to be
shorter than the detour through the client, the link between the two stands in for the first's ``leave_s`` and the
second's ``enter_s``.

The core is a dynamic program over block borders, vectorised over servers: ``inside[s]`` is the cheapest way to stand at
the current border with server ``s`` having computed the last block. It allows a server to be left and entered again;
where the optimum does that, a short branch and bound over "its run ends before", "begins after" or "covers" the block
between its two visits removes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from p2pllm.errors import CoverageError
from p2pllm.types import PeerId, Span

BRANCHES_MAX = 60
"""Programs solved to rid a chain of repeated servers; beyond that the best chain found so far is good enough."""
BRANCHED_CELLS_MAX = 2_000_000
"""The same for large swarms, in servers times blocks of all programs together: some dozens of milliseconds."""
MOVE_GAIN_MIN = 0.2
"""A session leaves its chain only for one whose steps are faster by this share: measurements are noisy."""
MOVE_RETURN_MIN = 2.0
"""And only if the remaining tokens will win back so many times what the move costs."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Run = tuple[int, int, int]
"""(server's index, first border, last border)."""


@dataclass(frozen=True, slots=True)
class Links:
    """Known direct ways between servers: ``seconds[i]`` from ``source[i]`` into ``target[i]``, overhead included."""

    source: Ints
    target: Ints
    seconds: Floats

    def between(self, source: int, target: int) -> float:
        """The direct way from one server into another; infinite when it is not known."""
        found = self.seconds[(self.source == source) & (self.target == target)]
        return float(found.min()) if len(found) else math.inf


NO_LINKS = Links(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True, slots=True)
class Graph:
    """Servers as columns; see the module for what each costs.

    Attributes:
        start, end: the span of each; end ≤ start for one that is out of the question.
        undivided: servers, by index, of which all of the span is to be used or nothing.
    """

    peers: Sequence[PeerId]
    start: Ints
    end: Ints
    enter_s: Floats
    block_s: Floats
    leave_s: Floats
    links: Links = NO_LINKS
    undivided: Sequence[int] = ()

    def hop_s(self, source: int, target: int) -> float:
        """The way from one server into another: direct, or through the client."""
        return min(float(self.leave_s[source] + self.enter_s[target]), self.links.between(source, target))


@dataclass(frozen=True, slots=True)
class Ends:
    """What entering and leaving each server costs where the chain does not begin, or end, at the client."""

    first_s: Floats
    last_s: Floats


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
        pushes: per link between neighbours, whether the output had better go there straight; False where the detour
            through the client is known to be no longer. Empty in a chain that the client relays.
    """

    hops: tuple[Hop, ...]
    cost_s: float
    numerics: str = ""
    pushes: tuple[bool, ...] = ()

    @property
    def borders(self) -> tuple[int, ...]:
        """Every block border at which hidden states travel, both ends included."""
        return (self.hops[0].span.start, *(hop.span.end for hop in self.hops))


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


def shortest_chain(graph: Graph, whole: Span, ends: Ends | None = None) -> Plan:
    """The cheapest chain through ``whole``.

    Raises:
        CoverageError: nobody serves some of the blocks; the message names them.
    """
    blocks = np.arange(whole.start, whole.end)[:, None]
    serves = (graph.start <= blocks) & (blocks < graph.end)  # [blocks, servers]
    missing = tuple(whole.start + int(b) for b in np.flatnonzero(~serves.any(axis=1)))
    if missing:
        raise CoverageError(f"nobody serves {name_blocks(missing)} of {whole.end}", missing)
    runs, cost_s = _without_repeats(_Program(graph, whole, ends), serves)
    if not runs:
        raise CoverageError("the spans that must not be divided leave no chain", ())
    hops = tuple(Hop(graph.peers[s], Span(whole.start + a, whole.start + b)) for s, a, b in runs)
    pushes = tuple(
        not graph.leave_s[s] + graph.enter_s[t] <= graph.links.between(s, t) < math.inf
        for (s, _, _), (t, _, _) in pairwise(runs)
    )
    return Plan(hops, cost_s, pushes=pushes)


def price(graph: Graph, hops: Sequence[Hop]) -> float:
    """What a step through a chain is expected to take by what is known now; infinite where a server does not serve."""
    index = {peer: i for i, peer in enumerate(graph.peers)}
    for hop in hops:
        i = index.get(hop.peer_id)
        if i is None or not graph.start[i] <= hop.span.start < hop.span.end <= graph.end[i]:
            return math.inf
    first = hops[0].span.start
    runs = [(index[hop.peer_id], hop.span.start - first, hop.span.end - first) for hop in hops]
    return _Program(graph, Span(first, hops[-1].span.end)).cost(runs)


def worth_moving(current: Plan, better: Plan, remaining_tokens: int, replay_s: float) -> bool:
    """Whether a session should leave its chain, with so many tokens still to come, for one that costs ``replay_s`` to
    bring up to date."""
    gain_s = current.cost_s - better.cost_s
    if not gain_s > 0 or remaining_tokens <= 0:
        return False
    return gain_s >= MOVE_GAIN_MIN * current.cost_s and gain_s * remaining_tokens >= MOVE_RETURN_MIN * replay_s


def changes(current: Sequence[Hop], wanted: Sequence[Hop]) -> list[tuple[int, int, tuple[Hop, ...]]]:
    """What turns one chain into another of the same range: (first, stop, new hops) for runs of ``current`` hops, in
    order, as short as borders that both have allow."""
    found: list[tuple[int, int, tuple[Hop, ...]]] = []
    i = j = 0
    while i < len(current):
        first, begin = i, j
        i, j = i + 1, j + 1
        while current[i - 1].span.end != wanted[j - 1].span.end:
            if current[i - 1].span.end < wanted[j - 1].span.end:
                i += 1
            else:
                j += 1
        new = tuple(wanted[begin:j])
        if new != tuple(current[first:i]):
            found.append((first, i, new))
    return found


class _Program:
    """The dynamic program for one range of blocks, and what all its branches share: links by border."""

    def __init__(self, graph: Graph, whole: Span, ends: Ends | None = None) -> None:
        self.graph = graph
        self._blocks = len(whole)
        self._first_s = graph.enter_s if ends is None else ends.first_s
        self._last_s = graph.leave_s if ends is None else ends.last_s
        self._undivided = [(i, graph.start[i] - whole.start, graph.end[i] - whole.start) for i in graph.undivided]
        links = graph.links
        source, target = links.source, links.target
        leave_from, enter_until = graph.start + 1, graph.end - 1
        for i in graph.undivided:
            leave_from[i], enter_until[i] = graph.end[i], graph.start[i]
        low = np.maximum(np.maximum(leave_from[source], graph.start[target]), whole.start + 1) - whole.start
        high = np.minimum(np.minimum(graph.end[source], enter_until[target]), whole.end - 1) - whole.start
        use = (low <= high) & (links.seconds < graph.leave_s[source] + graph.enter_s[target])
        chosen = np.flatnonzero(use)
        chosen = chosen[np.argsort(target[chosen], kind="stable")]  # next to nothing where they are sorted already
        low, count = low[chosen], high[chosen] - low[chosen] + 1
        total = int(count.sum())
        border = np.arange(total) + np.repeat(low - (np.cumsum(count) - count), count)
        order = np.argsort(border.astype(np.int16), kind="stable")  # a radix sort; targets stay in order
        border, link = border[order], np.repeat(chosen, count)[order]
        self._source, self._seconds = source[link], links.seconds[link]
        targets = target[link]
        new = np.ones(total, dtype=np.bool_)
        new[1:] = (targets[1:] != targets[:-1]) | (border[1:] != border[:-1])
        group = np.flatnonzero(new)
        borders = np.arange(self._blocks + 1)
        at = np.searchsorted(border, borders)
        self._at = at.tolist()
        self._group_at = np.searchsorted(border[group], borders).tolist()
        self._group_target = targets[group]
        self._group_start = group - at[border[group]]

    def solve(self, serves: Mask) -> tuple[list[Run], float]:
        """The cheapest chain; cost is infinite (and the chain empty) where a block has no server."""
        enter, leave = self.graph.enter_s, self.graph.leave_s
        inside = np.empty((self._blocks + 1, len(enter)))  # [border, server]
        inside[0] = np.inf
        out: list[int] = [-1]  # per border, the server that is left most cheaply there
        block_s = np.where(serves, self.graph.block_s, np.inf)
        fresh = self._first_s
        for b in range(self._blocks):
            if b > 0:
                left = inside[b] + leave
                for i, _, end in self._undivided:
                    left[i] = left[i] if b == end else np.inf
                out.append(int(left.argmin()))
                fresh = enter + left[out[b]]
                self._straight(b, inside[b], fresh)
                for i, start, _ in self._undivided:
                    fresh[i] = fresh[i] if b == start else np.inf
            np.minimum(fresh, inside[b], out=inside[b + 1])
            inside[b + 1] += block_s[b]
        total = inside[-1] + self._last_s
        server = int(total.argmin())
        cost = float(total[server])
        if math.isinf(cost):
            return [], cost
        runs: list[Run] = []
        start = end = self._blocks
        while start > 0:
            start -= 1
            while inside[start + 1, server] >= inside[start, server] + block_s[start, server]:
                start -= 1  # it was there already
            runs.append((server, start, end))
            end = start
            if start > 0:
                server = self._previous(start, server, inside[start], out[start])
        return runs[::-1], cost

    def _straight(self, b: int, inside: Floats, fresh: Floats) -> None:
        """Make ``fresh`` cheaper where a link leads into a server at border ``b``."""
        first, stop = self._at[b], self._at[b + 1]
        if first == stop:
            return
        groups = slice(self._group_at[b], self._group_at[b + 1])
        ways = inside[self._source[first:stop]]
        ways += self._seconds[first:stop]
        cheapest = np.minimum.reduceat(ways, self._group_start[groups])
        targets = self._group_target[groups]
        fresh[targets] = np.minimum(fresh[targets], cheapest)

    def _previous(self, b: int, server: int, inside: Floats, out: int) -> int:
        """Who stood before ``server``, which was entered at border ``b``."""
        links = self.graph.links
        into = np.flatnonzero(links.target == server)
        for i, _, end in self._undivided:
            if b != end:
                into = into[links.source[into] != i]
        if len(into):
            ways = inside[links.source[into]] + links.seconds[into]
            best = int(ways.argmin())
            if ways[best] < inside[out] + self.graph.leave_s[out] + self.graph.enter_s[server]:
                return int(links.source[into[best]])
        return out

    def cost(self, runs: Sequence[Run]) -> float:
        """What a given chain costs."""
        total = self._first_s[runs[0][0]] + self._last_s[runs[-1][0]]
        total += sum(self.graph.hop_s(s, t) for (s, _, _), (t, _, _) in pairwise(runs))
        return float(total + sum(self.graph.block_s[s] * (b - a) for s, a, b in runs))


def _repeat(runs: Sequence[Run]) -> tuple[int, int] | None:
    """Indices of the first two visits to the same server; None when all differ."""
    seen: dict[int, int] = {}
    for i, (server, _, _) in enumerate(runs):
        if server in seen:
            return seen[server], i
        seen[server] = i
    return None


def _without_repeats(program: _Program, serves: Mask) -> tuple[list[Run], float]:
    """The cheapest chain that visits no server twice."""
    best: list[Run] = []
    best_cost = math.inf
    waiting = [serves]
    for _ in range(max(4, min(BRANCHES_MAX, BRANCHED_CELLS_MAX // serves.size))):
        if not waiting:
            break
        mask = waiting.pop()
        runs, cost = program.solve(mask)
        if cost >= best_cost:
            continue
        repeat = _repeat(runs)
        if repeat is None:
            best, best_cost = runs, cost
            continue
        merged = _merge(runs)
        merged_cost = program.cost(merged)
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


def _merge(runs: Sequence[Run]) -> list[Run]:
    """A chain without repeats, made by staying on a server until its last visit; its span always allows that."""
    merged: list[Run] = []
    i = 0
    while i < len(runs):
        server, start, _ = runs[i]
        i = max(j for j in range(i, len(runs)) if runs[j][0] == server)
        merged.append((server, start, runs[i][2]))
        i += 1
    return merged
