"""What each server costs, from what it announces and what we measured: the graph that chains are planned on.

Invariants: pure. Our own measurements beat announced numbers while they are fresh. A round trip is split evenly into
the way there and the way back, so that what a client relays costs the same whichever way it is counted.

A server's announced throughput is that of its whole span: tokens per second that go in at one end and come out at the
other, so one block takes 1 / (throughput x blocks) seconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from p2pllm.client.peers import Peers
from p2pllm.client.route import NO_LINKS, Ends, Floats, Graph, Hop, Ints, Links, Mask, Plan
from p2pllm.config import ClientConfig
from p2pllm.dht.record import Announcement
from p2pllm.types import PeerId, ServerState, Span

UNKNOWN_BLOCK_S = 0.01
"""A block's time at a server that announces no throughput."""
TIE_BREAK = 1e-6
"""Costs differ at random by this share, so that clients spread over equal servers."""
OPEN_ROUND_TRIPS = 3.0
"""Opening a stream and a session, before the replay begins."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a chain is needed for.

    Attributes:
        span: the blocks to cover.
        cache_tokens: tokens that each server of the chain would have to hold; 0 for work without cache.
        tokens: tokens per step; above 1 the throughput of long batches counts.
        exact: only servers of one exact numerics class.
        numerics: only servers of this class, whatever it is; empty: of any.
        push: outputs go straight from server to server.
        avoid: servers that must not be used, such as those that the chain has already.
        before, after: where ``push`` is on, the servers that come before and after ``span``; None: the client.
    """

    span: Span
    cache_tokens: int = 0
    tokens: int = 1
    exact: bool = False
    numerics: str = ""
    push: bool = False
    avoid: frozenset[PeerId] = frozenset()
    before: PeerId | None = None
    after: PeerId | None = None


@dataclass(frozen=True)
class Columns:
    """Announcements, column by column.

    Attributes:
        block_s: per block, for steps of one token.
        batch_s: per block and token of a long batch; 0: not announced.
        queued_s: until what waits there now is done.
        tags: numerics classes.
    """

    servers: Sequence[Announcement]
    peers: tuple[PeerId, ...]
    index: Mapping[PeerId, int]
    start: Ints
    end: Ints
    block_s: Floats
    batch_s: Floats
    queued_s: Floats
    cache_tokens_free: Ints
    online: Mask
    exact: Mask
    tags: tuple[str, ...]
    _table: Floats
    _ways: Sequence[_Ways]

    @classmethod
    def of(cls, servers: Sequence[Announcement], last: Columns | None = None) -> Columns:
        """The columns of ``servers``, at most one record of each; quick where few differ from those of ``last``."""
        if last is None or tuple(server.peer for server in servers) != last.peers:
            peers = tuple(server.peer for server in servers)
            index: Mapping[PeerId, int] = {peer: i for i, peer in enumerate(peers)}
            table = np.empty((len(servers), 8))
            tags, ways = [""] * len(servers), [_NO_WAYS] * len(servers)
            changed: Sequence[int] = range(len(servers))
        else:
            peers, index, table = last.peers, last.index, last._table.copy()
            tags, ways = list(last.tags), list(last._ways)
            changed = [i for i, (new, old) in enumerate(zip(servers, last.servers, strict=True)) if new is not old]
        for i in changed:
            server = servers[i]
            table[i] = _row(server)
            tags[i] = server.numerics.tag()
            ways[i] = _NO_WAYS
            if server.pings:
                target = [index.get(peer, -1) for peer, _ in server.pings]
                ways[i] = np.array(target, dtype=np.int64), np.array([rtt_s / 2 for _, rtt_s in server.pings])
        return cls(
            servers=servers,
            peers=peers,
            index=index,
            start=table[:, 0].astype(np.int64),
            end=table[:, 1].astype(np.int64),
            block_s=table[:, 2],
            batch_s=table[:, 3],
            queued_s=table[:, 4],
            cache_tokens_free=table[:, 5].astype(np.int64),
            online=table[:, 6] > 0,
            exact=table[:, 7] > 0,
            tags=tuple(tags),
            _table=table,
            _ways=ways,
        )

    @cached_property
    def links(self) -> Links:
        """One way, half of the round trips that servers announce; by target."""
        if not any(len(target) for target, _ in self._ways):
            return NO_LINKS
        target = np.concatenate([target for target, _ in self._ways])
        seconds = np.concatenate([seconds for _, seconds in self._ways])
        source = np.repeat(np.arange(len(self.peers)), [len(target) for target, _ in self._ways])
        order = np.argsort(target.astype(np.int16), kind="stable") if len(self.peers) < 1 << 15 else np.argsort(target)
        order = order[np.searchsorted(target[order], 0) :]  # what is not in the view comes first, as -1
        return Links(source[order], target[order], seconds[order])


_Ways = tuple[Ints, Floats]
"""Targets and seconds of one server's links."""
_NO_WAYS: _Ways = (np.empty(0, dtype=np.int64), np.empty(0))


def _row(server: Announcement) -> tuple[float, ...]:
    speed, length, span = server.throughput, len(server.span), server.span
    block_s = 1.0 / (speed.inference * length) if speed.inference > 0 else UNKNOWN_BLOCK_S
    batch_s = 1.0 / (speed.forward * length) if speed.forward > 0 else 0.0
    queued_s = server.queue * block_s * length
    online, exact = server.state is ServerState.ONLINE, server.numerics.exact
    return (span.start, span.end, block_s, batch_s, queued_s, server.cache_tokens_free, online, exact)


class Costs:
    """A swarm's columns together with what we know of its servers, at one moment."""

    def __init__(
        self,
        columns: Columns,
        peers: Peers,
        config: ClientConfig,
        now: float,
        path_rtt_s: Callable[[PeerId], float | None],
    ) -> None:
        self.columns = columns
        self._config = config
        count = len(columns.peers)
        self._rtt_s = np.full(count, config.unknown_rtt_s)
        self._extra_s = columns.queued_s + config.hop_overhead_s
        self._block_s = columns.block_s.copy()
        for i, peer in enumerate(columns.peers):
            hop_s, block_s, rtt_s = peers.measured(peer, now)
            if rtt_s is None:
                rtt_s = path_rtt_s(peer)
            if rtt_s is None and hop_s is not None:
                rtt_s = max(0.0, hop_s - config.hop_overhead_s)
            if rtt_s is not None:
                self._rtt_s[i] = rtt_s
            if hop_s is not None:
                self._extra_s[i] = max(0.0, hop_s - self._rtt_s[i])
            if block_s is not None:
                self._block_s[i] = block_s

    def graph(self, wish: Wish, usable: Mask, holding: Sequence[Hop] = (), rng: random.Random | None = None) -> Graph:
        """The graph for one wish, among the servers that ``usable`` marks.

        Args:
            holding: hops that have their caches already; their servers may only be used for exactly these blocks.
            rng: makes equal servers differ a little.
        """
        columns, config = self.columns, self._config
        start, end = columns.start.copy(), np.where(usable, columns.end, 0)
        enter_s, leave_s, block_s = self._rtt_s / 2 + self._extra_s, self._rtt_s / 2, self._block_s
        if wish.tokens > 1:
            block_s = np.where(columns.batch_s > 0, wish.tokens * columns.batch_s, block_s)
        full_s = np.where(columns.cache_tokens_free < wish.cache_tokens, config.full_penalty_s, 0.0)
        for hop in holding:
            i = columns.index.get(hop.peer_id)
            if i is not None:
                full_s[i] = 0.0
                if usable[i] and columns.start[i] <= hop.span.start and hop.span.end <= columns.end[i]:
                    start[i], end[i] = hop.span.start, hop.span.end
                else:
                    end[i] = 0
        enter_s = enter_s + full_s
        if rng is not None:
            enter_s *= 1.0 + TIE_BREAK * np.array([rng.random() for _ in columns.peers])
        links = NO_LINKS
        if wish.push:
            ways = columns.links
            links = Links(ways.source, ways.target, ways.seconds + (self._extra_s + full_s)[ways.target])
        undivided = [columns.index[hop.peer_id] for hop in holding if hop.peer_id in columns.index]
        return Graph(columns.peers, start, end, enter_s, block_s, leave_s, links, undivided)

    def ends(self, wish: Wish, graph: Graph) -> Ends | None:
        """Where the chain begins and ends, if not at the client."""
        before = self.columns.index.get(wish.before) if wish.push and wish.before else None
        after = self.columns.index.get(wish.after) if wish.push and wish.after else None
        if before is None and after is None:
            return None
        first_s, last_s, links = graph.enter_s, graph.leave_s, graph.links
        if before is not None:
            first_s = first_s + graph.leave_s[before]
            known = links.source == before
            np.minimum.at(first_s, links.target[known], links.seconds[known])
        if after is not None:
            last_s = last_s + graph.enter_s[after]
            known = links.target == after
            np.minimum.at(last_s, links.source[known], links.seconds[known])
        return Ends(first_s, last_s)

    def replay_s(self, plan: Plan, holding: Collection[Hop], tokens: int) -> float:
        """What it takes to open those servers of a plan that are new, and to bring their caches up to ``tokens``."""
        columns, total = self.columns, 0.0
        for hop in plan.hops:
            if hop not in holding:
                i = columns.index[hop.peer_id]
                each_s = columns.batch_s[i] or self._block_s[i]
                total += OPEN_ROUND_TRIPS * self._rtt_s[i] + self._extra_s[i] + tokens * each_s * len(hop.span)
        return float(total)
