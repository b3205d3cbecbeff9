"""Servers of mixed size that come, choose blocks, move and die, as events: what placement policies are compared on.

The policies are the product's own (``p2pllm.server.placement``, ``p2pllm.server.rebalance``), asked with what a server
could know: others' announcements are seen a while later, and one that crashed is believed until it is late with its
next announcement (its record lives longer, but nobody should build on it).
Modelled are loading (seconds per block, nothing is served meanwhile), lives, and what a swarm serves: the summed
throughput of the weakest block.

Invariants: pure; a play follows from its parameters and seed. All policies meet the same servers at the same times.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Literal

import numpy as np

from p2pllm.server.placement import block_throughputs, join_window
from p2pllm.server.rebalance import Placed, next_move, settle
from p2pllm.types import PeerId, Span

Policy = Literal["none", "joiners", "full", "bound"]
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A swarm and its churn.

    Attributes:
        delay_s: until the others see an announcement.
        believed_s: a record counts for placement until it is so old.
        announce_s: a crashed server's last record is up to so old at the crash.
        crashes: share of those who go that crash; the others say goodbye.
        strike_s: at this moment all holders of the block in the middle crash; never when 0.
    """

    servers: int = field(default=200, metadata={"min": 2, "max": 5000, "about": "alive at a time, on average"})
    blocks: int = field(default=80, metadata={"min": 2, "max": 1000})
    size_min: int = field(default=2, metadata={"min": 1, "about": "blocks of the smallest server"})
    size_max: int = field(default=24, metadata={"min": 1, "about": "of the largest; log-uniform between"})
    spread: float = field(
        default=0.5, metadata={"min": 0.0, "max": 3.0, "about": "of the throughputs' logarithms, which are normal"}
    )
    life_s: float = field(default=1800.0, metadata={"min": 1.0, "about": "mean; exponential"})
    replaced: float = field(default=1.0, metadata={"min": 0.0, "max": 2.0, "about": "newcomers for each that goes"})
    load_s: float = field(default=3.0, metadata={"min": 0.0, "about": "per block that is not there yet"})
    seconds: float = field(default=3600.0, metadata={"min": 60.0})
    delay_s: float = field(default=5.0, metadata={"min": 0.0})
    believed_s: float = field(default=75.0, metadata={"min": 1.0, "about": "a record counts until it is so old"})
    announce_s: float = field(default=60.0, metadata={"min": 1.0, "about": "a live server's record is never older"})
    crashes: float = field(default=0.5, metadata={"min": 0.0, "max": 1.0})
    round_s: float = field(
        default=10.0, metadata={"min": 1.0, "about": "between decisions who moves, at most one each"}
    )
    quality: float = field(
        default=0.9,
        metadata={"min": 0.0, "max": 1.0, "about": "nobody moves for less than this share of what moves reach"},
    )
    strike_s: float = field(default=0.0, metadata={"min": 0.0})


@dataclass(slots=True)
class Server:
    """One of them, as it is.

    Attributes:
        span: what it serves from ``ready_s`` on.
        dies_s: and how it goes.
    """

    peer: PeerId
    size: int
    throughput: float
    born_s: float
    dies_s: float
    crashes: bool
    start: float
    """Where ``none`` puts it, as a share of what is possible."""
    span: Span | None = None
    ready_s: float = 0.0
    kept: Span | None = None
    """Served until then: what it had and will have."""


@dataclass(slots=True)
class Played:
    """What came of a policy.

    Attributes:
        times_s, weakest: throughput of the weakest block from each time on.
        moves, read_blocks: of servers that were up already; what they had to load for it.
        healed_s: from the strike until every block was served again; None: it never was, or there was none.
    """

    times_s: list[float]
    weakest: list[float]
    moves: int = 0
    read_blocks: int = 0
    joined: int = 0
    healed_s: float | None = None

    def mean(self, until_s: float) -> float:
        """Over time."""
        ends = [*self.times_s[1:], until_s]
        total = sum(w * (end - begin) for begin, end, w in zip(self.times_s, ends, self.weakest, strict=True))
        return total / (until_s - self.times_s[0])

    def served(self, until_s: float) -> float:
        """Share of the time in which every block was served."""
        ends = [*self.times_s[1:], until_s]
        up = sum(end - begin for begin, end, w in zip(self.times_s, ends, self.weakest, strict=True) if w > 0)
        return up / (until_s - self.times_s[0])


def population(setting: Setting, seed: int) -> list[Server]:
    """Who is there at the start, and who comes later."""
    rng = random.Random(f"{seed}/placement")
    found: list[Server] = []

    def add(born_s: float) -> None:
        size = round(math.exp(rng.uniform(math.log(setting.size_min), math.log(setting.size_max))))
        throughput = math.exp(rng.gauss(0.0, setting.spread))
        life_s = rng.expovariate(1 / setting.life_s)
        crashes, start = rng.random() < setting.crashes, rng.random()
        peer = PeerId(f"s{len(found)}")
        found.append(Server(peer, size, throughput, born_s, born_s + life_s, crashes, start))

    for _ in range(setting.servers):
        add(0.0)
    rate = setting.replaced * setting.servers / setting.life_s
    at = rng.expovariate(rate) if rate else math.inf
    while at < setting.seconds:
        add(at)
        at += rng.expovariate(rate)
    return found


class Play:
    """One policy over one population."""

    def __init__(self, setting: Setting, policy: Policy, seed: int) -> None:
        self._setting = setting
        self._policy = policy
        self._servers = [replace(server) for server in population(setting, seed)]
        self._phases = random.Random(f"{seed}/records")
        self._alive: dict[PeerId, Server] = {}
        self._seen: dict[PeerId, Placed] = {}
        """What everybody else believes."""
        self._events: list[tuple[float, int, str, object]] = []
        self._count = 0
        self._struck_s: float | None = None
        self.played = Played([], [])

    def run(self) -> Played:
        """Play it."""
        setting = self._setting
        for server in self._servers:
            self._at(server.born_s, "join", server)
        if self._policy in ("full", "bound"):
            self._at(0.0, "round", None)
        if setting.strike_s:
            self._at(setting.strike_s, "strike", None)
        while self._events and self._events[0][0] < setting.seconds:
            now = self._events[0][0]
            while self._events and self._events[0][0] == now:
                _, _, what, about = heappop(self._events)
                getattr(self, f"_{what}")(now, about)
            self._note(now)
        return self.played

    def _at(self, when_s: float, what: str, about: object) -> None:
        self._count += 1
        heappush(self._events, (when_s, self._count, what, about))

    # -- events ----------------------------------------------------------------------------------------------------

    def _join(self, now: float, server: Server) -> None:
        setting = self._setting
        size = min(server.size, setting.blocks)
        if self._policy == "none":
            start = round(server.start * (setting.blocks - size))
            span = Span(start, start + size)
        else:
            known = [(placed.span, placed.throughput) for placed in self._seen.values()]
            span = join_window(block_throughputs(known, setting.blocks), size)
        self._alive[server.peer] = server
        self.played.joined += 1
        self._at(server.dies_s, "go", server)
        self._settle_at(now, server, span, load=now > 0)

    def _settle_at(self, now: float, server: Server, span: Span, *, load: bool) -> None:
        """Announce ``span``, load what is missing, serve."""
        held = server.span if server.ready_s <= now else None
        missing = len(span) if held is None else sum(block not in held for block in span)
        server.kept = None
        if held is not None and max(held.start, span.start) < min(held.end, span.end):
            server.kept = Span(max(held.start, span.start), min(held.end, span.end))
        server.span, server.ready_s = span, now + (missing * self._setting.load_s if load else 0.0)
        if now:
            self._announce(now, server)
            self._at(server.ready_s, "ready", server)
        else:  # those who were there first have seen each other
            self._seen[server.peer] = Placed(server.peer, span, server.throughput, True)

    def _ready(self, now: float, server: Server) -> None:
        if server.peer in self._alive and server.ready_s <= now:
            self._announce(now, server)

    def _announce(self, now: float, server: Server) -> None:
        assert server.span is not None
        placed = Placed(server.peer, server.span, server.throughput, server.ready_s <= now)
        self._at(now + self._setting.delay_s, "see", placed)

    def _see(self, now: float, placed: Placed) -> None:
        if placed.peer in self._alive or placed.peer in self._seen:
            self._seen[placed.peer] = placed

    def _go(self, now: float, server: Server, crashed: bool | None = None) -> None:
        if self._alive.pop(server.peer, None) is None:
            return
        setting = self._setting
        if server.crashes if crashed is None else crashed:
            age_s = self._phases.uniform(0.0, setting.announce_s)
            self._at(now + max(0.0, setting.believed_s - age_s), "forget", server)
        else:
            self._at(now + setting.delay_s, "forget", server)

    def _forget(self, now: float, server: Server) -> None:
        self._seen.pop(server.peer, None)

    def _strike(self, now: float, about: None) -> None:
        self._struck_s = now
        middle = self._setting.blocks // 2
        for server in list(self._alive.values()):
            if server.span is not None and middle in server.span:
                self._go(now, server, crashed=True)

    def _round(self, now: float, about: None) -> None:
        setting = self._setting
        if self._policy == "bound":
            self._at(now + MINUTE_S, "round", None)
            alive = list(self._alive.values())
            truth = [Placed(s.peer, s.span, s.throughput) for s in alive if s.span is not None]
            for server, span in zip(alive, settle(truth, setting.blocks), strict=True):
                server.span = span
                self._seen[server.peer] = Placed(server.peer, span, server.throughput, server.ready_s <= now)
            return
        self._at(now + setting.round_s, "round", None)
        move = next_move(list(self._seen.values()), setting.blocks, setting.quality)
        mover = self._alive.get(move.peer) if move is not None else None
        if move is None or mover is None or mover.span is None or mover.ready_s > now:
            return
        self.played.moves += 1
        self.played.read_blocks += sum(block not in mover.span for block in move.span)
        self._settle_at(now, mover, move.span, load=True)

    # -- what is served --------------------------------------------------------------------------------------------

    def strengths(self, now: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Per block, the throughput of those who serve it now."""
        sums = np.zeros(self._setting.blocks)
        for server in self._alive.values():
            span = server.span if server.ready_s <= now else server.kept
            if span is not None:
                sums[span.start : span.end] += server.throughput
        return sums

    def _note(self, now: float) -> None:
        weakest = float(self.strengths(now).min())
        played = self.played
        if not played.times_s or weakest != played.weakest[-1]:
            played.times_s.append(now)
            played.weakest.append(weakest)
        if self._struck_s is not None and played.healed_s is None and weakest > 0:
            played.healed_s = now - self._struck_s


def play(setting: Setting, policy: Policy, seed: int) -> Played:
    """Play ``policy``."""
    return Play(setting, policy, seed).run()
