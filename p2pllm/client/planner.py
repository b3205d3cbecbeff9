"""From what servers announce and what we measured to a chain: the filters, and waiting for gaps to close.

Invariants: decides, dials nobody. Only servers that are ONLINE, allowed, not banned and (where asked) exact in one
numerics class are considered. Every plan is made in full, on the records and measurements of its moment. A gap that
somebody might still close is waited for, up to the client's patience, and then named in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import trio

from p2pllm.client.costs import Columns, Costs
from p2pllm.client.costs import Wish as Wish
from p2pllm.client.peers import Peers
from p2pllm.client.route import Hop, Mask, Plan, name_blocks, price, shortest_chain, worth_moving
from p2pllm.config import ClientConfig
from p2pllm.dht.record import Announcement
from p2pllm.errors import CoverageError
from p2pllm.ports import Ports
from p2pllm.types import PeerId

log = logging.getLogger(__name__)

POLL_S = 0.2
"""How often the view is looked at again while a gap is waited for."""
REFRESH_S = 2.0
"""How long asking around may take before the view is looked at in any case."""


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
        self._columns: Columns | None = None
        self._allowed = np.empty(0, dtype=np.bool_)

    def plan(self, wish: Wish) -> Plan:
        """The cheapest chain now; its servers' addresses are made known to the network.

        Raises:
            CoverageError: nobody usable serves some of the blocks.
        """
        columns = self._known()
        usable = self._wanted(columns, wish)
        free = self._without_banned(columns, usable)
        costs = self._costs(columns)
        try:
            plan = self._choose(columns, costs, free, wish)
        except CoverageError as gap:
            if (usable & ~free).any():
                self._choose(columns, costs, usable, wish)  # a gap even with them: that one is told
                blocks = f"{name_blocks(gap.missing)} of {wish.span.end}"
                text = f"{blocks} are served only by servers that failed, or were full, just now"
                raise CoverageError(text, gap.missing) from None
            if wish.avoid:
                text = f"nobody else serves {name_blocks(gap.missing)}"
                raise CoverageError(text, gap.missing) from None
            if self._config.allow_servers:
                raise CoverageError(f"{gap}, as far as servers are allowed", gap.missing) from None
            raise
        self._learn(columns, plan)
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

    def better(self, current: Sequence[Hop], wish: Wish, *, position: int, remaining: int) -> Plan | None:
        """A chain that a session with so many tokens in its caches, and so many still to come, should move to.

        Hops of ``current`` that appear in it unchanged keep their caches; none appears in it with other blocks.
        ``route.changes`` tells what to replace. None: stay.
        """
        columns = self._known()
        usable, costs = self._wanted(columns, wish), self._costs(columns)
        # A ban says: open nothing new there. What runs there may go on.
        free = self._without_banned(columns, usable)
        for hop in current:
            i = columns.index.get(hop.peer_id)
            if i is not None:
                free[i] = usable[i]
        now_s = price(costs.graph(wish, usable, current), current)
        try:
            plan = shortest_chain(costs.graph(wish, free, current, self._ports.rng), wish.span)
        except CoverageError:
            return None
        replay_s = costs.replay_s(plan, current, position)
        if not worth_moving(Plan(tuple(current), now_s), plan, remaining, replay_s):
            return None
        self._learn(columns, plan)
        return self._said(plan, wish)

    def likely(self, wish: Wish, chains: int) -> tuple[PeerId, ...]:
        """Servers of the cheapest chain, then of the cheapest without those, and so on: whom to know better."""
        columns = self._known()
        free = self._without_banned(columns, self._wanted(columns, wish))
        costs, found = self._costs(columns), dict[PeerId, None]()
        for _ in range(chains):
            try:
                plan = self._choose(columns, costs, free, wish)
            except CoverageError:
                break
            for hop in plan.hops:
                found[hop.peer_id] = None
                free[columns.index[hop.peer_id]] = False
        return tuple(found)

    async def refresh(self, timeout_s: float = REFRESH_S) -> None:
        """Look for newer announcements, within a bound: some server was not what its record says."""
        with trio.move_on_after(timeout_s):
            await self._view.refresh()

    # -- what is known ---------------------------------------------------------------------------------------------

    def _known(self) -> Columns:
        servers = self._view.servers()
        last = self._columns
        if last is None or list(last.servers) != list(servers):
            self._columns = Columns.of(list(servers), last)
            if last is None or self._columns.peers is not last.peers:
                allowed, me = self._config.allow_servers, self._ports.network.me
                ours = [peer != me and (not allowed or peer in allowed) for peer in self._columns.peers]
                self._allowed = np.array(ours, dtype=np.bool_)
        assert self._columns is not None
        return self._columns

    def _costs(self, columns: Columns) -> Costs:
        network = self._ports.network

        def path_rtt_s(peer: PeerId) -> float | None:
            path = network.path(peer)
            return None if path is None else path.rtt_s

        return Costs(columns, self._peers, self._config, trio.current_time(), path_rtt_s)

    def _wanted(self, columns: Columns, wish: Wish) -> Mask:
        """Who could serve the wish, bans aside."""
        usable = self._allowed & columns.online
        if wish.exact:
            usable &= columns.exact
        if wish.numerics:
            usable &= np.array([tag == wish.numerics for tag in columns.tags], dtype=np.bool_)
        for peer in wish.avoid:
            i = columns.index.get(peer)
            if i is not None:
                usable[i] = False
        return usable

    def _without_banned(self, columns: Columns, usable: Mask) -> Mask:
        free = usable.copy()
        for peer in self._peers.banned_peers(trio.current_time()):
            i = columns.index.get(peer)
            if i is not None:
                free[i] = False
        return free

    # -- choosing --------------------------------------------------------------------------------------------------

    def _choose(self, columns: Columns, costs: Costs, usable: Mask, wish: Wish) -> Plan:
        if wish.exact and not wish.numerics:
            return self._exact_plan(columns, costs, usable, wish)
        return self._chain(costs, usable, wish)

    def _chain(self, costs: Costs, usable: Mask, wish: Wish) -> Plan:
        graph = costs.graph(wish, usable, rng=self._ports.rng)
        return self._said(shortest_chain(graph, wish.span, costs.ends(wish, graph)), wish)

    def _exact_plan(self, columns: Columns, costs: Costs, usable: Mask, wish: Wish) -> Plan:
        """The cheapest chain within one numerics class; the gap told is that of the class with the fewest."""
        plans: list[Plan] = []
        gaps: list[tuple[int, ...]] = []
        for tag in sorted({columns.tags[i] for i in np.flatnonzero(usable)}):
            same = usable & np.array([other == tag for other in columns.tags], dtype=np.bool_)
            try:
                plans.append(replace(self._chain(costs, same, wish), numerics=tag))
            except CoverageError as gap:
                gaps.append(gap.missing)
        if plans:
            return min(plans, key=lambda plan: plan.cost_s)
        missing = min(gaps, key=len, default=tuple(wish.span))
        text = f"nobody serves {name_blocks(missing)} of {wish.span.end} in exact mode and one numerics class"
        raise CoverageError(text, missing)

    def _said(self, plan: Plan, wish: Wish) -> Plan:
        return replace(plan, pushes=plan.pushes if wish.push else (), numerics=wish.numerics)

    def _learn(self, columns: Columns, plan: Plan) -> None:
        for hop in plan.hops:
            addrs = columns.servers[columns.index[hop.peer_id]].addrs
            if addrs:
                self._ports.network.learn(hop.peer_id, addrs)
