"""How long passes take on this machine: the production chain, with real devices, over simulated streams, in real time.

Only the seconds that ``ports.Compute`` reports are kept, so what the streams cost does not matter. Steps come at the
pace of a swarm across the Internet, not one behind the other: between two of them caches go cold, and a pass takes a
fifth longer than in a tight loop.

Invariants: measured through the Compute port, in the passes that serving uses; one torch thread.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from p2pllm.config import Config
from p2pllm.local.compute import open_compute
from p2pllm.ports import Compute
from p2pllm.types import Cost, WorkKind
from sim.checkpoints import CheckpointModel
from sim.compute import CostModel
from sim.measuring import Load, Pace, time_steps
from sim.swarm import open_swarm

T = TypeVar("T")

LATENCY_S = 0.005
GAP_S = 0.05
NICE = -15
"""What is measured goes before other work of this machine, where that is allowed."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Milliseconds of what a step of one load computes.

    Attributes:
        hop_ms: of each span, by how many blocks it has.
        client_ms: of each of the client's two passes, embedding and head.
    """

    hop_ms: tuple[tuple[int, float], ...]
    client_ms: float

    def cost_model(self) -> CostModel:
        """The same for simulated devices; spans of other lengths take what the nearest one takes per block."""
        known = {blocks: ms / 1000 for blocks, ms in self.hop_ms}

        def model(cost: Cost, device: str) -> float:
            if cost.kind is WorkKind.CLIENT:
                return self.client_ms / 1000
            nearest = min(known, key=lambda blocks: (abs(blocks - cost.blocks), blocks))
            return known[nearest] * cost.blocks / nearest

        return model


@dataclass(eq=False)
class Watched:
    """A device whose single-token steps are noted."""

    compute: Compute
    rows: int
    hops: dict[int, list[float]] = field(default_factory=dict)
    client: list[float] = field(default_factory=list)

    async def run(self, work: Callable[[], T], cost: Cost, devices: Sequence[str] = ("cpu",)) -> tuple[T, float]:
        """See ``ports.Compute.run``."""
        result, seconds = await self.compute.run(work, cost, devices)
        if cost.kind is WorkKind.STEP and cost.tokens == self.rows:
            self.hops.setdefault(cost.blocks, []).append(seconds)
        if cost.kind is WorkKind.CLIENT and cost.tokens == self.rows:
            self.client.append(seconds)
        return result, seconds

    def passes(self) -> Passes:
        """Medians of all that was noted."""
        hops = ((blocks, 1000 * statistics.median(found)) for blocks, found in sorted(self.hops.items()))
        return Passes(tuple(hops), 1000 * statistics.mean(self.client))


async def measure_passes(blocks: CheckpointModel, spans: Sequence[tuple[int, int]], load: Load, steps: int) -> Passes:
    """Run a chain of ``spans`` in this process, in real time, and note what its devices take."""
    async with open_compute(("cpu",)) as compute:
        watched = Watched(compute, load.rows)
        async with open_swarm(
            blocks, spans, Config(), latency_s=LATENCY_S, compute=lambda: watched
        ) as swarm, swarm.client() as client:  # fmt: skip
            timed = await time_steps(client.model, load, Pace(steps=steps, gap_s=GAP_S))
    assert len(timed.chain) == len(spans), f"steps went through {timed.chain}"
    return watched.passes()


def passes_of(spans: Sequence[tuple[int, int]], load: Load, steps: int, model: str = "demo") -> Passes:
    """As ``measure_passes``, in a loop of its own, and before other work of this machine."""
    blocks = CheckpointModel(model)
    with before_others():
        return trio.run(measure_passes, blocks, spans, load, steps)


@contextmanager
def before_others() -> Iterator[None]:
    """Let this thread, and those that it starts, go before other work of the machine, if that is allowed."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)
