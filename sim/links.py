"""What lies between hosts: accesses, latencies, jitter and loss, drawn so that every stack sees the same network.

One way from a to b takes: latency of a's access + latency of b's access + latency of the pair, and then for each
message a draw of jitter and, where packets are lost, the time that TCP needs to send them again. Rates and queues are
each stack's own; only their figures are here.

Invariants: every value follows from the seed and from the names of the two hosts, never from what other pairs do or
from the order in which pairs are asked.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from sim.draws import Draw, Draws, Uniform, draw_of
from sim.matrix import Matrix
from sim.nat import Nat, RelayLimits

MSS_BYTES = 1448
"""What a TCP packet with timestamps carries over Ethernet."""
PACKET_HEADERS_BYTES = 66
"""What else such a packet is: Ethernet, IP and TCP."""
PACKET_BYTES = MSS_BYTES + PACKET_HEADERS_BYTES
RTO_MIN_S = 0.2
"""Linux waits at least so long before it repeats a packet that no acknowledgement speaks of."""


@dataclass(frozen=True, slots=True)
class Access:
    """How one host is connected to the Internet.

    Attributes:
        up_bytes_per_s: None: no limit.
        down_bytes_per_s: None: no limit.
        latency_s: one way, to the Internet's middle.
        jitter_s: added to each message: a number (uniform from zero to it), or a distribution.
        loss: share of packets.
        queue_s: how much the queue before the downlink holds; what finds it full is lost and sent again.
        nat: what stands between the host and the Internet.
        relay: what it does for hosts behind a NAT; None: nothing.
    """

    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    latency_s: float = 0.0
    jitter_s: float | Draw = 0.0
    loss: float = 0.0
    queue_s: float = math.inf
    nat: Nat = Nat.PUBLIC
    relay: RelayLimits | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """The way between two hosts, beside their accesses; None: as the default says."""

    latency_s: float | None = None
    jitter_s: float | Draw | None = None
    loss: float | None = None


@dataclass(slots=True)
class _Way:
    """All that is known of one direction between two hosts."""

    latency_s: float
    jitters: tuple[Draw, ...]
    loss: float
    draws: Draws


class Links:
    """The figures of a world's network. Change them by the verbs only: ways are remembered.

    Attributes:
        window_bytes: what a stream may send unread; None: the product's rule. Read by ``ports`` only, as libp2p's
            streams have the rule itself.
        slow_start: TCP begins slowly also where nothing is ever lost; elsewhere it always does.
        packet_headers: whether bytes count with the headers of their packets.
        record_delay_s: so much later than they were accepted do records and providers show in the DHT: replication and
            caches on the way. Read by ``ports`` only, too.
        reordering: whether jitter lets streams of one connection overtake each other; a stream always keeps its order.
    """

    def __init__(self, seed: int = 0, latency_s: float | Draw = 0.010) -> None:
        self.seed = seed
        self.window_bytes: int | None = None
        self.slow_start = False
        self.packet_headers = True
        self.record_delay_s = 0.0
        self.reordering = True
        self._default = Pair(0.0, 0.0, 0.0)
        self._latency = draw_of(latency_s)
        self._matrix: Matrix | None = None
        self._region: Callable[[str], str] = lambda name: name
        self._accesses: dict[str, Access] = {}
        self._ruled: dict[str, Access] = {}
        self._rule: Callable[[str], Access] = lambda name: _UNLIMITED
        self._pairs: dict[tuple[str, str], Pair] = {}
        self._ways: dict[tuple[str, str], _Way] = {}
        self._draws: dict[tuple[str, str], Draws] = {}

    # -- figures

    def access(self, name: str) -> Access:
        """How ``name`` is connected."""
        access = self._accesses.get(name) or self._ruled.get(name)
        if access is None:
            access = self._ruled[name] = self._rule(name)
        return access

    def set_accesses(self, rule: Callable[[str], Access]) -> None:
        """How hosts are connected of which nothing was said; asked once for each name."""
        self._rule = rule
        self._ruled.clear()
        self._ways.clear()

    def set_access(self, name: str, access: Access) -> None:
        self._accesses[name] = access
        self._ways.clear()

    def set_latency(self, a: str, b: str, seconds: float) -> None:
        """One way, the same in both directions, beside what the accesses add."""
        self.set_pair(a, b, replace(self._pairs.get((a, b), Pair()), latency_s=seconds))
        self.set_pair(b, a, replace(self._pairs.get((b, a), Pair()), latency_s=seconds))

    def set_pair(self, a: str, b: str, pair: Pair) -> None:
        """The way from ``a`` to ``b``, that direction only."""
        self._pairs[a, b] = pair
        self._ways.pop((a, b), None)

    def set_default(
        self, *, latency_s: float | Draw | None = None, jitter_s: float | Draw = 0.0, loss: float = 0.0
    ) -> None:
        """Pairs that nothing else is said of; a distribution of latencies is drawn from once for each pair."""
        if latency_s is not None:
            self._latency = draw_of(latency_s)
        self._default = Pair(0.0, jitter_s, loss)
        self._ways.clear()

    def set_matrix(self, matrix: Matrix, region: Callable[[str], str] = lambda name: name) -> None:
        """Latencies of pairs from a table; ``region`` gives a host's name there."""
        self._matrix, self._region = matrix, region
        self._ways.clear()

    # -- what they mean

    def latency(self, a: str, b: str) -> float:
        """Seconds, one way, without jitter and queues."""
        return self._way(a, b).latency_s

    def delay(self, a: str, b: str, size_bytes: int) -> float:
        """Seconds that ``size_bytes`` travel now; the next value of this direction's own sequence."""
        return self.journey(a, b, size_bytes)[0]

    def journey(self, a: str, b: str, size_bytes: int) -> tuple[float, int]:
        """As ``delay``, and how often the unluckiest packet was lost."""
        way = self._way(a, b)
        if not way.jitters and not way.loss:
            return way.latency_s, 0
        seconds, losses = way.latency_s, 0
        for jitter in way.jitters:
            seconds += max(0.0, jitter.at(way.draws.next()))
        if way.loss:
            packets = max(1, math.ceil(size_bytes / MSS_BYTES))
            losses = losses_in_a_row(way.loss, packets, way.draws.next())
            seconds += retransmission_s(losses, way.latency_s + self.latency(b, a))
        return seconds, losses

    def carried(self, size_bytes: int) -> int:
        """How many bytes cross a link when a stream sends ``size_bytes``."""
        return wire_bytes(size_bytes) if self.packet_headers else size_bytes

    def loss(self, a: str, b: str) -> float:
        """Share of packets that do not arrive on the way from ``a`` to ``b``."""
        return self._way(a, b).loss

    def _way(self, a: str, b: str) -> _Way:
        way = self._ways.get((a, b))
        if way is None:
            way = self._ways[a, b] = self._look(a, b)
        return way

    def _look(self, a: str, b: str) -> _Way:
        one, two, pair = self.access(a), self.access(b), self._pairs.get((a, b), Pair())
        latency_s = pair.latency_s
        if latency_s is None and self._matrix is not None:
            latency_s = self._matrix.one_way_s(self._region(a), self._region(b))
        if latency_s is None:
            latency_s = max(0.0, self._latency.at(self._fresh("latency", *sorted((a, b))).next()))
        middle = self._default.jitter_s if pair.jitter_s is None else pair.jitter_s
        loss = self._default.loss if pair.loss is None else pair.loss
        jitters = tuple(jitter_of(value) for value in (one.jitter_s, middle, two.jitter_s) if value)
        arrives = (1.0 - one.loss) * (1.0 - two.loss) * (1.0 - (loss or 0.0))
        draws = self._draws.get((a, b))
        if draws is None:
            draws = self._draws[a, b] = self._fresh("way", a, b)
        return _Way(one.latency_s + latency_s + two.latency_s, jitters, 1.0 - arrives, draws)

    def _fresh(self, *purpose: str) -> Draws:
        words = "/".join((str(self.seed), *purpose)).encode()
        return Draws(int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big"))


_UNLIMITED = Access()


def wire_bytes(size_bytes: int) -> int:
    """How many bytes cross a link when TCP carries ``size_bytes``."""
    return size_bytes + PACKET_HEADERS_BYTES * -(-size_bytes // MSS_BYTES)


def jitter_of(value: float | Draw) -> Draw:
    """A number is the largest jitter, all values up to it being equally likely."""
    return Uniform(0.0, value) if isinstance(value, int | float) else value


def losses_in_a_row(loss: float, packets: int, u: float) -> int:
    """How often the unluckiest of ``packets`` packets is lost before it arrives, for a uniform draw ``u``."""
    losses, tail = 0, loss
    while (1.0 - tail) ** packets <= u:
        losses += 1
        tail *= loss
    return losses


def retransmission_s(losses: int, rtt_s: float) -> float:
    """What TCP takes longer when a packet is lost so often: once by fast retransmit, then by doubling timeouts."""
    if not losses:
        return 0.0
    return rtt_s + max(RTO_MIN_S, 2 * rtt_s) * (2.0 ** (losses - 1) - 1.0)
