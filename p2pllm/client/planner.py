"""From what servers announce and what we measured to a chain: the costs, the filters, and waiting for gaps to close.

Invariants: decides, dials nobody. Only servers that are ONLINE, allowed, not banned and (where asked) exact in one
numerics class are considered. Our own measurements beat announced numbers. A gap that somebody might still close is
waited for, up to the client's patience, and then named in one line.

A server's announced throughput is that of its whole span: tokens per second that go in at one end and come out at the
other, so one block takes 1 / (throughput x blocks) seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from p2pllm.client.peers import Peers
from p2pllm.client.route import Candidate, Plan, name_blocks, shortest_chain
from p2pllm.config import ClientConfig
from p2pllm.dht.record import Announcement
from p2pllm.errors import CoverageError
from p2pllm.ports import Ports
from p2pllm.types import PeerId, ServerState, Span

log = logging.getLogger(__name__)

UNKNOWN_BLOCK_S = 0.01
"""A block's time at a server that announces no throughput."""
POLL_S = 0.2
"""How often the view is looked at again while a gap is waited for."""
REFRESH_S = 2.0
"""How long asking around may take before the view is looked at in any case."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a chain is needed for.

    Attributes:
        span: the blocks to cover.
        cache_tokens: tokens that each server of the chain would have to hold; 0 for work without cache.
        tokens: tokens per step; above 1 the throughput of long batches counts.
        exact: only servers of one exact numerics class.
    """

    span: Span
    cache_tokens: int = 0
    tokens: int = 1
    exact: bool = False


class ModelView(Protocol):
    """What a client wants of the directory, for its model."""

    def servers(self) -> Sequence[Announcement]:
        """Current announcements."""
        ...

    def mark_reached(self, peer: PeerId) -> None:
        """Say that ``peer`` was reached, so that its record is worth keeping and spreading."""
        ...

    async def refresh(self) -> None:
        """Ask around now; returns when the view is as fresh as it can be."""
        ...


class Planner:
    """Chooses chains among the servers of ``view``."""

    def __init__(self, config: ClientConfig, ports: Ports, peers: Peers, view: ModelView) -> None:
        self._config = config
        self._ports = ports
        self._peers = peers
        self._view = view

    def plan(self, wish: Wish) -> Plan:
        """The cheapest chain now; its servers' addresses are made known to the network.

        Raises:
            CoverageError: nobody usable serves some of the blocks.
        """
        now = trio.current_time()
        usable = [s for s in self._view.servers() if self._usable(s, wish)]
        free = [s for s in usable if not self._peers.banned(s.peer, now)]
        self._ports.rng.shuffle(free)  # equal servers share the load
        try:
            plan = self._choose(free, wish)
        except CoverageError as gap:
            if len(free) < len(usable):
                self._choose(usable, wish)  # a gap even with them: that one is told
                blocks = f"{name_blocks(gap.missing)} of {wish.span.end}"
                text = f"{blocks} are served only by servers that failed, or were full, just now"
                raise CoverageError(text, gap.missing) from None
            if self._config.allow_servers:
                raise CoverageError(f"{gap}, as far as servers are allowed", gap.missing) from None
            raise
        addrs = {s.peer: s.addrs for s in free}
        for hop in plan.hops:
            if addrs[hop.peer_id]:
                self._ports.network.learn(hop.peer_id, addrs[hop.peer_id])
        return plan

    async def wait_plan(self, wish: Wish, deadline: float) -> Plan:
        """As ``plan``; a gap is waited for until ``deadline``.

        Raises:
            CoverageError: there is still a gap then.
        """
        began, told = trio.current_time(), False
        while True:
            try:
                plan = self.plan(wish)
            except CoverageError as gap:
                now = trio.current_time()
                if now >= deadline:
                    raise CoverageError(f"{gap} (waited {now - began:.0f} s)", gap.missing) from None
                if not told and now - began >= self._config.gap_grace_s:
                    told = True
                    log.warning("%s; waiting up to %.0f s more", gap, deadline - now)
                await self.refresh(min(REFRESH_S, deadline - now))
                await trio.sleep(min(POLL_S, max(0.0, deadline - trio.current_time())))
            else:
                await trio.lowlevel.checkpoint()
                return plan

    async def refresh(self, timeout_s: float = REFRESH_S) -> None:
        """Look for newer announcements, within a bound: some server was not what its record says."""
        with trio.move_on_after(timeout_s):
            await self._view.refresh()

    def _usable(self, server: Announcement, wish: Wish) -> bool:
        allowed = self._config.allow_servers
        return (
            server.state is ServerState.ONLINE
            and server.peer != self._ports.network.me
            and (not allowed or server.peer in allowed)
            and (not wish.exact or server.numerics.exact)
        )

    def _choose(self, servers: Sequence[Announcement], wish: Wish) -> Plan:
        return self._exact_plan(servers, wish) if wish.exact else self._chain(servers, wish)

    def _chain(self, servers: Sequence[Announcement], wish: Wish) -> Plan:
        return shortest_chain([self._candidate(s, wish) for s in servers], wish.span)

    def _exact_plan(self, servers: Sequence[Announcement], wish: Wish) -> Plan:
        """The cheapest chain within one numerics class; the gap told is that of the class with the fewest."""
        classes: dict[str, list[Announcement]] = {}
        for server in servers:
            classes.setdefault(server.numerics.tag(), []).append(server)
        plans: list[Plan] = []
        gaps: list[tuple[int, ...]] = []
        for tag in sorted(classes):
            try:
                plans.append(replace(self._chain(classes[tag], wish), numerics=tag))
            except CoverageError as gap:
                gaps.append(gap.missing)
        if plans:
            return min(plans, key=lambda plan: plan.cost_s)
        missing = min(gaps, key=len, default=tuple(wish.span))
        text = f"nobody serves {name_blocks(missing)} of {wish.span.end} in exact mode and one numerics class"
        raise CoverageError(text, missing)

    def _candidate(self, server: Announcement, wish: Wish) -> Candidate:
        speed = server.throughput.inference
        block_s = 1.0 / (speed * len(server.span)) if speed > 0 else UNKNOWN_BLOCK_S
        queued_s = server.queue * block_s * len(server.span)
        block_s = self._peers.block_s(server.peer) or block_s
        if wish.tokens > 1 and server.throughput.forward > 0:
            block_s = wish.tokens / (server.throughput.forward * len(server.span))
        enter_s = self._peers.hop_s(server.peer)
        if enter_s is None:
            path = self._ports.network.path(server.peer)
            rtt_s = path.rtt_s if path is not None else None
            enter_s = self._config.unknown_rtt_s if rtt_s is None else rtt_s
            enter_s += self._config.hop_overhead_s + queued_s
        if server.cache_tokens_free < wish.cache_tokens:
            enter_s += self._config.full_penalty_s
        return Candidate(server.peer, server.span, enter_s, block_s)
