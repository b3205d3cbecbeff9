"""What scenarios see of a simulated world, whatever its stack: hosts, what lies between, and the experimenter's verbs.

``ports`` is ``sim.network.SimWorld`` (streams and records simulated directly), ``libp2p`` is
``sim.libp2p.world.Libp2pWorld`` (the real host, Noise, yamux and KadDHT over an in-memory transport).

Invariants: nothing here knows a stack. Every verb acts at the virtual time at which it is called.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import trio

from p2pllm.config import NetConfig
from p2pllm.ports import Network, Stream
from sim.links import Access, Links

EPOCH_S = 1_800_000_000.0
"""What an unskewed host's wall clock shows when virtual time is zero."""


class TappedStream(Stream, Protocol):
    """A stream as a tap sees it."""

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the hosts on this side and on the other."""
        ...

    def fail_both(self, reason: str) -> None:
        """Break the stream at both ends at once; what is under way on it is lost."""
        ...


Tap = Callable[[TappedStream, bytes], bytes]
"""Called with every write before it leaves, in the sender's task; what it returns leaves instead."""


class Host(Network, Protocol):
    """One host: the product's port, and what experiments ask beyond it."""

    @property
    def name(self) -> str: ...

    @property
    def alive(self) -> bool:
        """Whether it runs; a killed host comes back as a new ``Host`` of the same name and identity."""
        ...

    def spawn(self, work: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run a task of this host: it ends when the host is killed."""
        ...

    def connected(self) -> Sequence[Host]:
        """Hosts that this one is connected to."""
        ...


class World(Protocol):
    """All hosts, and what lies between. Use it as ``async with``."""

    seed: int
    config: NetConfig
    links: Links
    nursery: trio.Nursery
    tap: Tap | None

    @property
    def stack(self) -> str:
        """``ports`` or ``libp2p``."""
        ...

    @property
    def hosts(self) -> Mapping[str, Host]:
        """By name, in order of their first start; with those that were killed."""
        ...

    async def start(self, name: str, *, bootstrap: Sequence[str] | None = None) -> Host:
        """A new host, or one that was killed, up again with the same identity and an empty memory.

        Args:
            name: must not be up.
            bootstrap: addresses to join through; None: those of the world's first host.
        """
        ...

    def rng(self, *purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that one more draw here changes nothing there."""
        ...

    def wall_time(self, name: str) -> float:
        """What the clock on the wall of ``name`` shows."""
        ...

    # -- what lies between

    def latency(self, a: str, b: str) -> float:
        """Seconds, one way, without jitter and queues."""
        ...

    def set_latency(self, a: str, b: str, seconds: float) -> None:
        """One way, the same in both directions, beside what both accesses add."""
        ...

    def set_access(self, name: str, access: Access) -> None:
        """How ``name`` is connected to the Internet, from now on; it need not be up."""
        ...

    def set_bandwidth(self, name: str, up_bytes_per_s: float | None) -> None:
        """Limit a host's uplink; None: no limit."""
        ...

    def skew(self, name: str, seconds: float) -> None:
        """Make the clock on the wall of ``name`` wrong by so much."""
        ...

    # -- faults

    def kill(self, name: str) -> None:
        """A crash: tasks of the host are cancelled, peers see their connections reset."""
        ...

    def hang(self, name: str) -> None:
        """The host is silent, its connections stay; heartbeats of its peers find out."""
        ...

    def resume(self, name: str) -> None:
        """End of ``hang``."""
        ...

    def partition(self, *groups: Sequence[str]) -> None:
        """Only hosts of the same group hear each other; hosts in no group form one of their own."""
        ...

    def heal(self) -> None:
        """End every partition."""
        ...

    # -- time and trace

    def later(self, a: str, b: str, call: Callable[[], None]) -> None:
        """Do something one latency from now."""
        ...

    def note(self, event: str, source: str, target: str, data: bytes) -> None:
        """Add an event to the trace."""
        ...

    def trace_hash(self) -> str:
        """What happened so far, as one number: equal for equal seeds, in every process."""
        ...
