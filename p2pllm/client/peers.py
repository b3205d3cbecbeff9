"""What this client learned of each peer: what a hop to it costs, and until when it is left alone.

Invariants: pure bookkeeping, ``now`` is an argument; a ban always ends; each new failure doubles the next ban up to a
cap, and quiet time takes the doublings back one by one, so a server that recovers is used again like any other. Who
failed is doubted until it answers a ping; who does not is left alone for longer, and free as soon as it does.
The number of peers remembered is bounded: the one not heard of for longest is forgotten first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pllm.client.patience import StepTimes
from p2pllm.config import ClientConfig
from p2pllm.types import PeerId

SMOOTHING = 0.2
"""Weight of the newest sample in a moving average: about ten steps to believe a change."""
PING_SMOOTHING = 0.5
"""Pings are rare."""
MEASURED_S = 600.0
"""Steps longer ago than this say nothing of a server's load now; what it announces says more."""

Measured = tuple[float | None, float | None, float | None]


@dataclass(slots=True)
class _Known:
    hop_s: float | None = None
    block_s: float | None = None
    measured_at: float = float("-inf")
    rtt_s: float | None = None
    rtt_at: float = float("-inf")
    times: StepTimes = field(default_factory=StepTimes)
    answered_at: float = float("-inf")
    failures: int = 0
    until: float = float("-inf")
    held_until: float = float("-inf")
    doubted: bool = False

    @property
    def free_at(self) -> float:
        return max(self.until, self.held_until)


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """One peer, for people and logs.

    Attributes:
        hop_s: smoothed seconds that a step spends on the way to the peer and back, queueing included; None: unknown.
        block_s: smoothed device seconds of one block for one step; None: unknown.
        rtt_s: smoothed round trip of pings; None: never pinged.
        failures: failures not yet forgiven.
        banned_s: seconds until it may be used again; 0 when it may.
    """

    peer: PeerId
    hop_s: float | None
    block_s: float | None
    rtt_s: float | None
    failures: int
    banned_s: float


class Peers:
    """Measurements and bans, by peer."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._known: dict[PeerId, _Known] = {}

    def answered(self, peer: PeerId, *, wall_s: float, compute_s: float, blocks: int, now: float) -> None:
        """A step of few tokens came back: ``wall_s`` after we sent it there, ``compute_s`` of it on the device."""
        known = self._fresh(peer, now)
        known.hop_s = _smooth(known.hop_s, max(0.0, wall_s - compute_s))
        known.block_s = _smooth(known.block_s, max(0.0, compute_s) / max(1, blocks))

    def computed(self, peer: PeerId, compute_s: float, blocks: int, now: float) -> None:
        """A step of few tokens came back that somebody else had sent there: only its device time tells us something."""
        known = self._fresh(peer, now)
        known.block_s = _smooth(known.block_s, max(0.0, compute_s) / max(1, blocks))

    def took(self, peer: PeerId, size: float, wall_s: float, now: float) -> None:
        """A step of ``size`` (see ``patience.work``), of any length, was answered after ``wall_s``."""
        known = self._touch(peer)
        known.times.took(size, wall_s)
        known.answered_at = now

    def answered_at(self, peer: PeerId) -> float:
        """When a step of ours, of whatever session, was answered last; minus infinity: never."""
        known = self._known.get(peer)
        return known.answered_at if known else float("-inf")

    def step_timeout_s(self, peer: PeerId, size: float) -> float:
        """How long to wait for the answer to a step of ``size`` before the peer counts as silent."""
        known = self._known.get(peer)
        floor_s, cap_s = self._config.step_timeout_min_s, self._config.step_timeout_s
        return known.times.timeout_s(size, floor_s, cap_s) if known else cap_s

    def pinged(self, peer: PeerId, rtt_s: float, now: float) -> None:
        """A ping came back after ``rtt_s``."""
        known = self._touch(peer)
        known.rtt_s = _smooth(known.rtt_s, rtt_s, PING_SMOOTHING)
        known.rtt_at = now
        known.doubted = False
        known.held_until = float("-inf")

    def unanswered(self, peer: PeerId, hold_s: float, now: float) -> None:
        """A ping did not come back: leave the peer alone until one does, for at most ``hold_s``.

        Nothing is held against it: a ping is no session.
        """
        known = self._touch(peer)
        known.doubted = True
        known.held_until = now + hold_s

    def doubted(self, peer: PeerId) -> bool:
        """Whether the last that we heard of the peer was that it failed, or did not answer: a ping would tell."""
        known = self._known.get(peer)
        return known is not None and known.doubted

    def connect_timeout_s(self, peer: PeerId, now: float) -> float:
        """How long an attempt to reach the peer may take."""
        known = self._known.get(peer)
        failures = self._unforgiven(known, now) if known else 0
        return self._config.connect_timeout_s * 2.0 ** min(failures, 30)

    def failed(self, peer: PeerId, now: float) -> float:
        """The peer failed: ban it; returns the time when it may be used again.

        Failures during a ban add nothing: they are the same event, met by several steps at once.
        """
        known = self._touch(peer)
        known.doubted = True
        known.times.forget()  # was it silence, then perhaps we were impatient; was it a crash, then it comes back cold
        if now >= known.until:
            known.failures = self._unforgiven(known, now) + 1
            doublings = min(known.failures - 1, 30)
            known.until = now + min(self._config.ban_s * 2.0**doublings, self._config.ban_max_s)
        return known.until

    def busy(self, peer: PeerId, retry_after_s: float, now: float) -> None:
        """The peer is full: leave it alone for a while, without holding it against it."""
        known = self._touch(peer)
        if now >= known.until:
            known.failures = self._unforgiven(known, now)
        known.until = max(known.until, now + retry_after_s)

    def banned(self, peer: PeerId, now: float) -> bool:
        """Whether the peer is to be left alone at ``now``."""
        known = self._known.get(peer)
        return known is not None and now < known.free_at

    def banned_peers(self, now: float) -> tuple[PeerId, ...]:
        """All who are to be left alone at ``now``."""
        return tuple(peer for peer, known in self._known.items() if now < known.free_at)

    def next_release(self, now: float) -> float | None:
        """When the first of the current bans ends; None when nobody is banned."""
        return min((k.free_at for k in self._known.values() if now < k.free_at), default=None)

    def hop_s(self, peer: PeerId) -> float | None:
        """Smoothed seconds that a step spends outside the peer's device; None: never measured."""
        known = self._known.get(peer)
        return known.hop_s if known else None

    def block_s(self, peer: PeerId) -> float | None:
        """Smoothed device seconds of one block for one step; None: never measured."""
        known = self._known.get(peer)
        return known.block_s if known else None

    def rtt_s(self, peer: PeerId) -> float | None:
        """Smoothed round trip of pings; None: never pinged."""
        known = self._known.get(peer)
        return known.rtt_s if known else None

    def pinged_at(self, peer: PeerId) -> float:
        """When the last ping came back; minus infinity: never."""
        known = self._known.get(peer)
        return known.rtt_at if known else float("-inf")

    def measured(self, peer: PeerId, now: float) -> Measured:
        """``hop_s``, ``block_s`` and ``rtt_s``, as far as they are known; the first two only while they are fresh."""
        known = self._known.get(peer)
        if known is None:
            return None, None, None
        if now - known.measured_at > MEASURED_S:
            return None, None, known.rtt_s
        return known.hop_s, known.block_s, known.rtt_s

    def statistics(self, now: float) -> tuple[PeerStatistics, ...]:
        """A snapshot, the peer heard of longest ago first."""
        return tuple(
            PeerStatistics(peer, k.hop_s, k.block_s, k.rtt_s, self._unforgiven(k, now), max(0.0, k.free_at - now))
            for peer, k in self._known.items()
        )

    def _unforgiven(self, known: _Known, now: float) -> int:
        if known.failures == 0 or now <= known.until:
            return known.failures
        return max(0, known.failures - int((now - known.until) / self._config.ban_heal_s))

    def _fresh(self, peer: PeerId, now: float) -> _Known:
        known = self._touch(peer)
        if now - known.measured_at > MEASURED_S:
            known.hop_s = known.block_s = None
        known.measured_at = now
        return known

    def _touch(self, peer: PeerId) -> _Known:
        known = self._known.pop(peer, None) or _Known()
        self._known[peer] = known
        while len(self._known) > self._config.peers_max:
            del self._known[next(iter(self._known))]
        return known


def _smooth(old: float | None, new: float, weight: float = SMOOTHING) -> float:
    return new if old is None else old + weight * (new - old)
