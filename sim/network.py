"""The simulated network: a world of hosts in one process, in virtual time, with the port of the real one.

Invariants: every identity, latency and choice follows from the seed; nothing here reads a clock or randomness of the
system; all that a host does to another takes its latency. Verbs of the experimenter: ``kill``, ``hang``/``resume``,
``partition``/``heal``, ``set_latency``, ``set_bandwidth``, ``skew``.

    async with SimWorld(seed=7) as world:
        server, client = world.host("server"), world.host("client")
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import trio

from p2pllm.config import NetConfig
from p2pllm.types import PeerId
from sim.dht import SimDht
from sim.host import SimNetwork
from sim.stream import SimStream

EPOCH_S = 1_800_000_000.0
"""What an unskewed host's wall clock shows when virtual time is zero."""


class SimWorld:
    """All hosts, and what lies between them. Use it as ``async with``."""

    def __init__(self, seed: int = 0, latency_s: float = 0.010, config: NetConfig | None = None) -> None:
        self.seed = seed
        self.config = config or NetConfig()
        self.hosts: dict[str, SimNetwork] = {}
        self._peers: dict[PeerId, SimNetwork] = {}
        self.dht = SimDht(self)
        self.tap: Callable[[SimStream, bytes], bytes] | None = None
        """Called with every write before it leaves, in the sender's task; what it returns leaves instead."""
        self._latency_s = latency_s
        self._latencies: dict[tuple[str, str], float] = {}
        self._skews: dict[str, float] = {}
        self._side: dict[str, int] = {}
        self._hung: set[str] = set()
        self._changed = trio.Event()
        self._trace = hashlib.blake2b(digest_size=16)
        self._nursery_manager = trio.open_nursery()
        self.nursery: trio.Nursery

    async def __aenter__(self) -> Self:
        self.nursery = await self._nursery_manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        self.nursery.cancel_scope.cancel()
        return await self._nursery_manager.__aexit__(kind, exc, tb)

    # -- hosts

    def host(self, name: str, bootstrap: Sequence[str] | None = None) -> SimNetwork:
        """A new host; it bootstraps through ``bootstrap``, by default through the world's first host.

        A name that was killed comes back with the same identity and an empty memory.
        """
        if name in self.hosts and self.hosts[name].alive:
            raise ValueError(f"host {name} is up already")
        if bootstrap is None:
            first = next(iter(self.hosts.values()), None)
            bootstrap = first.addrs if first is not None and first.name != name else ()
        host = self.hosts[name] = SimNetwork(self, name, bootstrap)
        self._peers[host.me] = host
        return host

    def by_peer(self, peer: PeerId) -> SimNetwork | None:
        """The host of an identity."""
        return self._peers.get(peer)

    def rng(self, *purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that one more draw here changes nothing there."""
        return random.Random("/".join((str(self.seed), *purpose)))

    def wall_time(self, name: str) -> float:
        """What the clock on the wall of ``name`` shows."""
        return EPOCH_S + trio.current_time() + self._skews.get(name, 0.0)

    # -- what lies between

    def latency(self, a: str, b: str) -> float:
        """Seconds, one way."""
        return self._latencies.get((a, b), self._latency_s)

    def set_latency(self, a: str, b: str, seconds: float) -> None:
        """One way, the same in both directions."""
        self._latencies[a, b] = self._latencies[b, a] = seconds

    def set_bandwidth(self, name: str, up_bytes_per_s: float | None) -> None:
        """Limit a host's uplink; None: no limit."""
        self.hosts[name].uplink.bytes_per_s = up_bytes_per_s

    def skew(self, name: str, seconds: float) -> None:
        """Make the clock on the wall of ``name`` wrong by so much."""
        self._skews[name] = seconds

    def cut(self, a: str, b: str) -> bool:
        """Whether nothing passes between two hosts now (their packets wait, as in TCP)."""
        return self._side.get(a, 0) != self._side.get(b, 0) or a in self._hung or b in self._hung

    def open_to(self, a: str, b: str) -> bool:
        """Whether ``a`` would get an answer from ``b`` now."""
        return self.hosts[b].alive and not self.cut(a, b)

    # -- faults

    def kill(self, name: str) -> None:
        """A crash: tasks of the host are cancelled, peers see their connections reset."""
        self.note("kill", name, name, b"")
        self.hosts[name].die()

    def hang(self, name: str) -> None:
        """The host is silent, its connections stay; heartbeats of its peers find out."""
        self.note("hang", name, name, b"")
        self._hung.add(name)
        self._watch_cuts()

    def resume(self, name: str) -> None:
        self.note("resume", name, name, b"")
        self._hung.discard(name)
        self._wake_all()

    def partition(self, *groups: Sequence[str]) -> None:
        """Only hosts of the same group hear each other; hosts in no group form one of their own."""
        self._side = {name: side for side, group in enumerate(groups, 1) for name in group}
        self.note("partition", "", "", repr(sorted(self._side.items())).encode())
        self._watch_cuts()
        self._wake_all()

    def heal(self) -> None:
        """End every partition."""
        self.partition()

    async def wait_passable(self, a: str, b: str) -> None:
        """Wait until packets pass between two hosts: retransmissions then arrive."""
        while self.cut(a, b):
            await self._changed.wait()

    def _wake_all(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        for host in self.hosts.values():
            host.wake()

    def _watch_cuts(self) -> None:
        """Connections that stay cut for as long as heartbeats need are lost, on both sides."""
        pairs = [(a, b) for a in self.hosts.values() for b in a.connected() if a.name < b.name]
        cut = [(a, b) for a, b in pairs if self.cut(a.name, b.name)]

        async def watch() -> None:
            await trio.sleep(self.config.heartbeat_interval_s + self.config.heartbeat_timeout_s)
            for a, b in cut:
                if self.cut(a.name, b.name):
                    a.lose(b, "no heartbeat")
                    b.lose(a, "no heartbeat")

        self.nursery.start_soon(watch)

    # -- time and trace

    def later(self, a: str, b: str, call: Callable[[], None]) -> None:
        """Do something one latency from now."""

        async def wait() -> None:
            await trio.sleep(self.latency(a, b))
            call()

        self.nursery.start_soon(wait)

    def note(self, event: str, source: str, target: str, data: bytes) -> None:
        """Add an event to the trace."""
        self._trace.update(f"{trio.current_time():.9f} {event} {source} {target} {len(data)}\n".encode())
        self._trace.update(data)

    def trace_hash(self) -> str:
        """What happened so far, as one number: equal for equal seeds, in every process."""
        return self._trace.hexdigest()
