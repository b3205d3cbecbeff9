"""Whether servers are there at all: questions that cost them nothing, asked while we wait for something that may last.

Invariants: bounded in number and time. Who does not answer is left alone until it does, without holding it against it:
a ping is no session. When nobody answers, the fault is ours, and nobody is avoided for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from p2pllm.client.costs import Wish
from p2pllm.client.peers import Peers
from p2pllm.client.planner import ModelView, Planner
from p2pllm.config import ClientConfig
from p2pllm.dht.ping import ping
from p2pllm.ports import Ports
from p2pllm.types import ModelId, PeerId, Span

log = logging.getLogger(__name__)

CHAINS = 3
"""The cheapest chain, the next one if all of its servers fail, and one more."""
AT_ONCE = 8
QUIET_S = 1.0
"""Whoever lets us wait for longer than round trips take is asked whether it is there."""
AGAIN_S = 5.0
"""How often, while the wait goes on."""
LATE_S = 1.0
"""A connected server that answers later than so is probably gone, and others perhaps with it: time to look around."""


class Vitals:
    """Asks the servers of one model."""

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
        self._looking = False

    def likely(self) -> tuple[PeerId, ...]:
        """Servers of the cheapest chains."""
        return self._planner.likely(self._wish, CHAINS)[: self._config.pings_max]

    def doubted(self) -> tuple[PeerId, ...]:
        """Servers in the view of which a ping would tell whether they are back."""
        found = [server.peer for server in self._view.servers() if self._peers.doubted(server.peer)]
        return tuple(found[: self._config.pings_max])

    async def measure(self, chosen: Sequence[PeerId], timeout_s: float) -> None:
        """Ping some servers, and write down who answered and who did not."""
        silent: list[PeerId] = []
        addrs = {server.peer: server.addrs for server in self._view.servers()}
        places = trio.Semaphore(AT_ONCE)

        async def one(peer: PeerId) -> None:
            async with places:
                if addrs.get(peer):
                    self._ports.network.learn(peer, addrs[peer])
                if not await self.answers(peer, timeout_s):
                    silent.append(peer)

        async with trio.open_nursery() as nursery:
            for peer in chosen:
                nursery.start_soon(one, peer)
        if len(silent) < len(chosen) or len(chosen) == 1:
            for peer in silent:
                log.debug("server %s does not answer pings", peer)
                self._peers.unanswered(peer, self._config.ping_interval_s, trio.current_time())

    async def answers(self, peer: PeerId, timeout_s: float) -> bool:
        """Whether a ping comes back."""
        rtt_s = await ping(self._ports.network, peer, self._model, timeout_s)
        if rtt_s is None:
            return False
        self._peers.pinged(peer, rtt_s, trio.current_time())
        self._view.mark_reached(peer)
        return True

    async def wait_silence(self, peer: PeerId) -> None:
        """Return once ``peer``, with which we are connected, answers nothing any more; until then, ask now and then."""
        pause_s = QUIET_S
        while True:
            await trio.sleep(pause_s)
            pause_s = AGAIN_S
            if self._ports.network.path(peer) is None:
                continue  # dialling has its own deadline
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_around)
                answered = await self.answers(peer, self._config.step_timeout_min_s)
                nursery.cancel_scope.cancel()
            if not answered:
                return

    async def _look_around(self) -> None:
        """Where one falls silent others may have, too: know it before they are chosen instead of it."""
        await trio.sleep(LATE_S)
        if self._looking:
            return
        self._looking = True
        try:
            await self.measure(self.likely(), max(0.0, self._config.step_timeout_min_s - LATE_S - 0.1))
        finally:
            self._looking = False
