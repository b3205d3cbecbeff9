"""A network as a scenario describes it: the ``[network]`` table, and one host's access.

Invariants: figures are in the units that people speak of (milliseconds, megabits per second); ``apply`` and ``of`` are
where they become the simulator's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sim.draws import Uniform
from sim.links import Access
from sim.matrix import read_matrix
from sim.nat import Nat, RelayLimits
from sim.world import World

BYTES_PER_MBIT = 125_000


@dataclass(frozen=True, slots=True)
class AccessSpec:
    """How a host is connected; nothing: no limit."""

    up_mbit: float | None = field(default=None, metadata={"min": 0.001})
    down_mbit: float | None = field(default=None, metadata={"min": 0.001})
    latency_ms: float = field(default=0.0, metadata={"min": 0.0, "about": "one way, to the Internet's middle"})
    jitter_ms: float = field(default=0.0, metadata={"min": 0.0, "about": "each message takes up to so much longer"})
    loss: float = field(default=0.0, metadata={"min": 0.0, "max": 0.9, "about": "share of packets"})
    queue_ms: float | None = field(
        default=None, metadata={"min": 1.0, "about": "what waits longer at the downlink is lost"}
    )
    nat: Nat = Nat.PUBLIC
    relay: bool = field(default=False, metadata={"about": "relays for hosts behind a NAT"})

    def access(self) -> Access:
        """The same for the simulator."""
        return Access(
            None if self.up_mbit is None else self.up_mbit * BYTES_PER_MBIT,
            None if self.down_mbit is None else self.down_mbit * BYTES_PER_MBIT,
            self.latency_ms / 1000, self.jitter_ms / 1000, self.loss,
            math.inf if self.queue_ms is None else self.queue_ms / 1000,
            self.nat, RelayLimits() if self.relay else None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What lies between hosts.

    Attributes:
        latency_ms: one way between two hosts; two numbers: for each pair anything between them.
        jitter_ms: each message takes up to so much longer.
        loss: share of packets between two hosts.
        matrix: latencies between regions, a CSV file (see ``sim.matrix``); hosts without a region keep ``latency_ms``.
        access: of hosts that have no other.
    """

    latency_ms: float | tuple[float, float] = field(default=20.0, metadata={"min": 0.0})
    jitter_ms: float = field(default=0.0, metadata={"min": 0.0})
    loss: float = field(default=0.0, metadata={"min": 0.0, "max": 0.9})
    matrix: Path | None = None
    window_kib: float | None = field(default=None, metadata={"min": 1.0, "about": "a fixed window of every stream"})
    access: AccessSpec = AccessSpec()

    def apply(self, world: World, regions: Mapping[str, str]) -> None:
        """Make the world's network so; ``regions``: of hosts, by name."""
        links, latency = world.links, self.latency_ms
        latency_s = Uniform(latency[0] / 1000, latency[1] / 1000) if isinstance(latency, tuple) else latency / 1000
        links.set_default(latency_s=latency_s, jitter_s=self.jitter_ms / 1000, loss=self.loss)
        links.set_accesses(lambda name: self.access.access())
        if self.matrix is not None:
            links.set_matrix(read_matrix(self.matrix), lambda name: regions.get(name, name))
        if self.window_kib is not None:
            links.window_bytes = int(self.window_kib * 1024)
