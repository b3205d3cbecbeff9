"""Round trips from a server to those that could come next in a chain, for announcement.

Invariants: a bounded number of servers; the nearest ones are measured again in every round, the rest of the places go
round among the others. Whoever does not answer is dropped. Only servers that hold the block after our last one count.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence

import trio

from p2pllm.config import ServerConfig
from p2pllm.dht.pace import slower
from p2pllm.dht.ping import ping
from p2pllm.dht.record import PINGS_MAX, Announcement
from p2pllm.ports import Ports
from p2pllm.types import ModelId, PeerId, ServerState, Span

log = logging.getLogger(__name__)

AT_ONCE = 4
FIRST_PAUSE_S = 1.0
CALM_MAX = 4.0
CHANGE_MIN = 0.25
PING_S_MAX = 60.0
"""What a record may say."""


def next_hops(servers: Sequence[Announcement], span: Span, me: PeerId) -> list[Announcement]:
    """Servers that can go on where ``span`` ends, the likeliest first: those that begin just there, and fast ones."""
    able = [s for s in servers if s.peer != me and s.state is ServerState.ONLINE and span.end in s.span]
    return sorted(able, key=lambda s: (s.span.start != span.end, -s.throughput.inference, s.peer))


def choose(able: Sequence[PeerId], known: Mapping[PeerId, float], limit: int, rng: random.Random) -> tuple[PeerId, ...]:
    """Whom to measure in a round: the nearest known ones for half of the places, then the likeliest unknown ones, then
    chance."""
    nearest = sorted((peer for peer in able if peer in known), key=lambda peer: known[peer])[: max(1, limit // 2)]
    unknown = [peer for peer in able if peer not in known]
    rest = [peer for peer in able if peer in known and peer not in nearest]
    return tuple([*nearest, *unknown, *rng.sample(rest, len(rest))][:limit])


class NextHopPings:
    """Measures; ``run`` until cancelled."""

    def __init__(
        self,
        config: ServerConfig,
        ports: Ports,
        servers: Callable[[], Sequence[Announcement]],
        model: ModelId,
        span: Span,
    ) -> None:
        self._config = config
        self._ports = ports
        self._servers = servers
        self._model = model
        self._span = span
        self._known: dict[PeerId, float] = {}

    @property
    def pings(self) -> tuple[tuple[PeerId, float], ...]:
        """Seconds, the nearest first, as an announcement says it."""
        limit = min(PINGS_MAX, self._config.next_hop_pings_max)
        return tuple(sorted(self._known.items(), key=lambda item: (item[1], item[0]))[:limit])

    async def run(self) -> None:
        """Round after round, at random intervals."""
        pause_s, calm = FIRST_PAUSE_S, 1.0
        while self._config.next_hop_pings_max > 0:
            await trio.sleep(pause_s * self._ports.rng.uniform(0.5, 1.5))
            before = dict(self._known)
            await self.round()
            # At most as often as records are renewed: sooner the swarm does not hear of it. In a large swarm also
            # more rarely while all stays as it is: round trips seldom change.
            factor = slower(len(self._servers()))
            usual_s = self._config.ping_interval_s * factor
            calm = min(factor, CALM_MAX, 2 * calm) if self._alike(before) else 1.0
            pause_s = usual_s * calm if self._known else min(FIRST_PAUSE_S * 5, 2 * pause_s)

    def _alike(self, before: Mapping[PeerId, float]) -> bool:
        """Whether those whom we knew before are as near as they were."""
        pairs = [(rtt_s, self._known[peer]) for peer, rtt_s in before.items() if peer in self._known]
        return bool(pairs) and all(abs(old - new) <= CHANGE_MIN * max(old, new) for old, new in pairs)

    async def round(self) -> None:
        """Measure once."""
        network = self._ports.network
        able = next_hops(self._servers(), self._span, network.me)
        addrs = {server.peer: server.addrs for server in able}
        self._known = {peer: rtt_s for peer, rtt_s in self._known.items() if peer in addrs}
        chosen = choose(list(addrs), self._known, self._config.next_hop_pings_max, self._ports.rng)
        places = trio.Semaphore(AT_ONCE)

        async def one(peer: PeerId) -> None:
            async with places:
                rtt_s = await ping(network, peer, self._model, self._config.ping_timeout_s)
            if rtt_s is None:
                self._known.pop(peer, None)
                log.debug("next hop %s does not answer pings", peer)
            else:
                self._known[peer] = min(rtt_s, PING_S_MAX)

        async with trio.open_nursery() as nursery:
            for peer in chosen:
                network.learn(peer, addrs[peer])
                nursery.start_soon(one, peer)
