"""Round trips to the servers that chains are likely to use, measured in the background while a model is connected.

Invariants: a bounded number of servers, those of the cheapest chains first, then now and then a stranger, who might be
nearer than all that we know. A server that does not answer is left alone for a moment, without holding it against it:
a ping is no session. When nobody answers, the fault is ours, and nobody is avoided for it.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence

import trio

from p2pllm.client.peers import Peers
from p2pllm.client.planner import ModelView, Planner, Wish
from p2pllm.config import ClientConfig
from p2pllm.dht.ping import ping
from p2pllm.ports import Ports
from p2pllm.types import ModelId, PeerId, Span

log = logging.getLogger(__name__)

CHAINS = 3
"""The cheapest chain, the next one if all of its servers fail, and one more."""
STRANGERS = 2
"""Per round, once the likely ones are known."""
AT_ONCE = 4
SOON_S = 1.0
"""Pause while there is much to learn: what was measured makes others likely."""


def due(
    likely: Sequence[PeerId],
    others: Sequence[PeerId],
    pinged_at: Callable[[PeerId], float],
    oldest: float,
    rng: random.Random,
) -> tuple[list[PeerId], list[PeerId]]:
    """Whom to ping now: likely ones whose last ping is older than ``oldest``; strangers if none of those is unknown."""
    known = [peer for peer in likely if pinged_at(peer) <= oldest]
    if any(math.isinf(pinged_at(peer)) for peer in known):
        return known, []
    strangers = [peer for peer in others if math.isinf(pinged_at(peer))]
    return known, rng.sample(strangers, min(STRANGERS, len(strangers)))


class Pings:
    """Measures for one model; ``run`` until cancelled."""

    def __init__(
        self,
        config: ClientConfig,
        ports: Ports,
        peers: Peers,
        planner: Planner,
        view: ModelView,
        model: ModelId,
        whole: Span,
    ) -> None:
        self._config = config
        self._ports = ports
        self._peers = peers
        self._planner = planner
        self._view = view
        self._model = model
        self._wish = Wish(whole, exact=config.exact)

    async def run(self) -> None:
        """Round after round, at random intervals so that clients do not march in step."""
        if self._config.pings_max < 1:
            return
        while True:
            learning = await self.round()
            pause_s = SOON_S if learning else self._config.ping_interval_s / 2
            await trio.sleep(pause_s * self._ports.rng.uniform(0.5, 1.5))

    async def round(self) -> bool:
        """Ping whoever it is time for; whether there may be more to learn soon."""
        peers, now = self._peers, trio.current_time()
        likely = self._likely()
        banned = set(peers.banned_peers(now))
        others = [s.peer for s in self._view.servers() if s.peer not in likely and s.peer not in banned]
        others = [peer for peer in others if peer != self._ports.network.me]
        oldest = now - self._config.ping_interval_s
        known, strangers = due(likely, others, peers.pinged_at, oldest, self._ports.rng)
        learning = not likely or any(math.isinf(peers.pinged_at(peer)) for peer in known)
        connected = {peer for peer in strangers if self._ports.network.path(peer) is not None}
        await self._measure([*known, *strangers])
        likely = self._likely()
        for peer in strangers:  # whoever proved to be of no use need not stay connected
            if peer not in likely and peer not in connected:
                await self._ports.network.close_peer(peer)
        return learning

    def _likely(self) -> tuple[PeerId, ...]:
        return self._planner.likely(self._wish, CHAINS)[: self._config.pings_max]

    async def _measure(self, chosen: Sequence[PeerId]) -> None:
        silent: list[PeerId] = []
        addrs = {server.peer: server.addrs for server in self._view.servers()}
        places = trio.Semaphore(AT_ONCE)

        async def one(peer: PeerId) -> None:
            async with places:
                rtt_s = await ping(self._ports.network, peer, self._model, self._config.ping_timeout_s)
            if rtt_s is None:
                silent.append(peer)
            else:
                self._peers.pinged(peer, rtt_s, trio.current_time())
                self._view.mark_reached(peer)

        async with trio.open_nursery() as nursery:
            for peer in chosen:
                if addrs.get(peer):
                    self._ports.network.learn(peer, addrs[peer])
                nursery.start_soon(one, peer)
        if len(silent) < len(chosen) or len(chosen) == 1:
            for peer in silent:
                log.debug("server %s does not answer pings", peer)
                self._peers.busy(peer, self._config.ban_s, trio.current_time())
