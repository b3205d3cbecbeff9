"""Round trips to the servers that chains are likely to use, measured in the background while a model is connected.

Invariants: a bounded number of servers, those of the cheapest chains first, then now and then a stranger, who might be
nearer than all that we know. Those that failed, or did not answer, are asked again and again until they do, so that no
user has to find out, and so that they are used again as soon as they are back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import trio

from p2pllm.client.peers import Peers
from p2pllm.client.planner import ModelView, Planner
from p2pllm.client.vitals import Vitals
from p2pllm.config import ClientConfig
from p2pllm.ports import Ports
from p2pllm.types import ModelId, PeerId, Span

STRANGERS = 2
"""Per round, once the likely ones are known."""
PATIENCE_S = 3.0
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
        self._view = view
        self._vitals = Vitals(config, ports, peers, planner, view, model, whole)

    async def run(self) -> None:
        """Round after round, at random intervals so that clients do not march in step."""
        if self._config.pings_max < 1:
            return
        while True:
            learning = await self.round()
            pause_s = SOON_S if learning else self._config.ping_interval_s / 2
            await self._rest(pause_s * self._ports.rng.uniform(0.5, 1.5))

    async def round(self) -> bool:
        """Ping whoever it is time for; whether there may be more to learn soon."""
        config, peers, now = self._config, self._peers, trio.current_time()
        likely = self._vitals.likely()
        banned = set(peers.banned_peers(now))
        others = [s.peer for s in self._view.servers() if s.peer not in likely and s.peer not in banned]
        others = [peer for peer in others if peer != self._ports.network.me]
        oldest = now - config.ping_interval_s
        known, strangers = due(likely, others, peers.pinged_at, oldest, self._ports.rng)
        learning = not likely or any(math.isinf(peers.pinged_at(peer)) for peer in known)
        connected = {peer for peer in strangers if self._ports.network.path(peer) is not None}
        await self._ask_doubted(likely)
        await self._vitals.measure([*known, *strangers], config.ping_timeout_s)
        likely = self._vitals.likely()
        for peer in strangers:  # whoever proved to be of no use need not stay connected
            if peer not in likely and peer not in connected:
                await self._ports.network.close_peer(peer)
        return learning

    async def _ask_doubted(self, likely: Sequence[PeerId]) -> None:
        """Whether they are back; one that is not in doubt is asked, too, lest it be we who hear nothing."""
        if doubted := self._vitals.doubted():
            witness = [peer for peer in likely if peer not in doubted][:1]
            # In less time than the ban of a first failure takes.
            await self._vitals.measure([*doubted, *witness], min(self._config.step_timeout_min_s, PATIENCE_S))

    async def _rest(self, pause_s: float) -> None:
        """Until the next round, which comes sooner when somebody fails."""
        until = trio.current_time() + pause_s
        while (left_s := until - trio.current_time()) > 0:
            await trio.sleep(min(SOON_S, left_s))
            if self._vitals.doubted():
                return
