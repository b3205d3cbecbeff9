"""A network as a scenario describes it: the ``[network]`` table, and one host's access.

Invariants: figures are in the units that people speak of (milliseconds, megabits per second); ``apply`` and ``of`` are
where they become the simulator's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sim.draws import Draw, LogNormal, Normal, Pareto, Uniform
from sim.links import Access
from sim.matrix import read_matrix
from sim.nat import Nat, RelayLimits
from sim.world import World

BYTES_PER_MBIT = 125_000


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution of delays, such as ``{kind = "lognormal", ms = 20, spread = 0.5}``.

    Attributes:
        ms: the middle of a uniform or normal one, the median of a lognormal one, the least of a pareto one.
        spread: milliseconds to both sides (uniform), deviation in milliseconds (normal) or of the logarithm
            (lognormal), shape (pareto: the smaller, the heavier its tail; above 1).
    """

    kind: Literal["uniform", "normal", "lognormal", "pareto"]
    ms: float = field(metadata={"min": 0.0})
    spread: float = field(metadata={"min": 0.0})

    def __post_init__(self) -> None:
        if self.kind == "pareto" and self.spread <= 1:
            raise ValueError("spread of a pareto distribution must be above 1: it has no mean otherwise")

    def draw(self) -> Draw:
        """The same for the simulator, in seconds."""
        middle_s = self.ms / 1000
        match self.kind:
            case "uniform":
                return Uniform(middle_s - self.spread / 1000, middle_s + self.spread / 1000)
            case "normal":
                return Normal(middle_s, self.spread / 1000)
            case "lognormal":
                return LogNormal(middle_s, self.spread)
            case "pareto":
                return Pareto(middle_s, self.spread)


def seconds_of(delay_ms: float | tuple[float, float] | Spread) -> float | Draw:
    """A delay of a scenario as the simulator takes it; two numbers: anything between them."""
    if isinstance(delay_ms, Spread):
        return delay_ms.draw()
    if isinstance(delay_ms, tuple):
        return Uniform(delay_ms[0] / 1000, delay_ms[1] / 1000)
    return delay_ms / 1000


@dataclass(frozen=True, slots=True)
class AccessSpec:
    """How a host is connected; nothing: no limit."""

    up_mbit: float | None = field(default=None, metadata={"min": 0.001})
    down_mbit: float | None = field(default=None, metadata={"min": 0.001})
    latency_ms: float = field(default=0.0, metadata={"min": 0.0, "about": "one way, to the Internet's middle"})
    jitter_ms: float | Spread = field(
        default=0.0, metadata={"min": 0.0, "about": "each message takes up to so much longer"}
    )
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
            self.latency_ms / 1000, seconds_of(self.jitter_ms), self.loss,
            math.inf if self.queue_ms is None else self.queue_ms / 1000,
            self.nat, RelayLimits() if self.relay else None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What lies between hosts.

    Attributes:
        latency_ms: one way between two hosts; two numbers, or a distribution: drawn once for each pair.
        jitter_ms: each message takes up to so much longer; a distribution: drawn for each message.
        loss: share of packets between two hosts.
        matrix: latencies between regions, a CSV file (see ``sim.matrix``); hosts without a region keep ``latency_ms``.
        slow_start: TCP begins slowly also where nothing is ever lost (elsewhere it always does).
        record_delay_ms: so much later than they were stored do records of the DHT show (``ports`` only).
        access: of hosts that have no other.
    """

    latency_ms: float | tuple[float, float] | Spread = field(default=20.0, metadata={"min": 0.0})
    jitter_ms: float | Spread = field(default=0.0, metadata={"min": 0.0})
    loss: float = field(default=0.0, metadata={"min": 0.0, "max": 0.9})
    matrix: Path | None = None
    window_kib: float | None = field(default=None, metadata={"min": 1.0, "about": "a fixed window of every stream"})
    slow_start: bool = False
    record_delay_ms: float = field(default=0.0, metadata={"min": 0.0})
    access: AccessSpec = AccessSpec()

    def apply(self, world: World, regions: Mapping[str, str]) -> None:
        """Make the world's network so; ``regions``: of hosts, by name."""
        links = world.links
        links.set_default(latency_s=seconds_of(self.latency_ms), jitter_s=seconds_of(self.jitter_ms), loss=self.loss)
        links.slow_start, links.record_delay_s = self.slow_start, self.record_delay_ms / 1000
        links.set_accesses(lambda name: self.access.access())
        if self.matrix is not None:
            links.set_matrix(read_matrix(self.matrix), lambda name: regions.get(name, name))
        if self.window_kib is not None:
            links.window_bytes = int(self.window_kib * 1024)
