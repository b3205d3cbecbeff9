"""One chain, one client, on every stack: simulated streams, the real libp2p over simulated links, and real sockets.

What is measured is the same everywhere, by the same code: single-token steps of a session of the demo model. Virtual
time knows nothing of this machine, so it is told what the machine was measured to take (``Machine``); what lies between
the hosts is modelled by each stack for itself.

Invariants: ``play_virtual`` follows from its cell alone; ``play_real`` and ``measure_machine`` are what the clock says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

from sim.checkpoints import CheckpointModel
from sim.measuring import Load, Pace, Timed, time_steps
from sim.real.passes import Passes, passes_of
from sim.real.swarm import RealSpec, open_real
from sim.run import run
from sim.virtual import VirtualSpec, open_virtual

PUSH = {"pushed": "on", "relayed": "off"}
SPANS = ((0, 3), (3, 5), (5, 8))
WHOLE = (0, 8)
MACHINE_LATENCY_MS = 25.0
"""Where a message's own milliseconds are measured: one server, and none of the latencies that are compared."""
REAL_S = 60.0
"""A client may take so long for itself, beside its steps."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What one load takes on one machine.

    Attributes:
        passes: what its steps compute.
        message_ms: what both ends need to send and receive a message, encryption and wake-ups included.
    """

    load: Load
    passes: Passes
    message_ms: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting of the scenario."""

    latency_ms: float
    mbit: float
    mode: str
    load: Load

    def __str__(self) -> str:
        return f"{self.latency_ms:g} ms, {self.mbit:g} Mbit/s, {self.mode}, {self.load}"


@dataclass(frozen=True, slots=True)
class Virtual:
    """A cell to be played in virtual time."""

    stack: str
    cell: Cell
    machine: Machine
    pace: Pace
    seed: int


@dataclass(frozen=True, slots=True)
class Punctuality:
    """How well the machine kept up with the links that it emulated.

    Attributes:
        delivered: packets.
        late: share of them that were more than 300 microseconds late.
        late_mean_us: of all.
        busy: other work, as processes that wanted a core in the last minute.
    """

    latency_ms: float
    mbit: float
    delivered: int
    late: float
    late_mean_us: float
    busy: float


@cache
def demo() -> CheckpointModel:
    """The model, once in each process."""
    return CheckpointModel()


def play_virtual(job: Virtual) -> tuple[Timed, str]:
    """The steps of a cell, and the trace's hash."""
    cell, blocks = job.cell, demo()
    servers = {f"s{number}": span for number, span in enumerate(SPANS)}
    spec = VirtualSpec(
        job.stack, servers, job.machine.passes.cost_model(), cell.latency_ms, cell.mbit, job.machine.message_ms,
        PUSH[cell.mode], job.seed,
    )  # fmt: skip

    async def main() -> tuple[Timed, str]:
        async with open_virtual(blocks, spec) as swarm:
            timed = await time_steps(swarm.model, cell.load, job.pace)
            return timed, swarm.world.trace_hash()

    return run(main, job.seed)


def play_real(
    cells: Sequence[Cell], pace: Pace, repeats: int, congestion: str, on_cell: Callable[[], None]
) -> tuple[dict[Cell, Timed], Punctuality]:
    """The steps of cells that share latency and bandwidth, on real sockets; their loads take turns.

    Raises:
        Skipped: this machine cannot do that.
        SwarmError: a process failed.
    """
    latency_ms, mbit = cells[0].latency_ms, cells[0].mbit
    servers = {f"s{number}": span for number, span in enumerate(SPANS)}
    found: dict[Cell, Timed] = {}
    with open_real(RealSpec(servers, latency_ms, mbit, congestion)) as swarm:
        swarm.lab.ctl("reset")
        for mode in dict.fromkeys(cell.mode for cell in cells):
            loads = tuple(cell.load for cell in cells if cell.mode == mode)
            job = swarm.job(push=PUSH[mode], loads=loads, pace=pace, repeats=repeats)
            said = list(swarm.ask(job, REAL_S + repeats * len(loads) * pace.length))
            for load in loads:
                found[Cell(latency_ms, mbit, mode, load)] = _pooled(said, load)
                on_cell()
        total = swarm.lab.stats()["total"]
    delivered = int(total["delivered"])
    late = total["late_over_300us"] / max(1, delivered)
    return found, Punctuality(latency_ms, mbit, delivered, late, total["late_mean_us"], os.getloadavg()[0])


def _pooled(said: Iterable[dict[str, object]], load: Load) -> Timed:
    """All steps of a load, over its repetitions."""
    mine = [one for one in said if one["rows"] == load.rows and one["activations"] == load.activations]
    steps = tuple(step for one in mine for step in _floats(one["step_s"]))
    return Timed(steps, tuple(map(str, _list(mine[-1]["chain"]))))


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def _floats(value: object) -> list[float]:
    return [float(str(one)) for one in _list(value)]


def measure_machine(loads: Sequence[Load], pace: Pace, repeats: int, congestion: str) -> tuple[Machine, ...]:
    """What this machine takes: passes in this process, messages through a swarm of one server.

    Raises:
        Skipped: this machine has no namespaces.
    """
    passes = {load: (passes_of(SPANS, load, pace.steps), passes_of((WHOLE,), load, pace.steps)) for load in loads}
    with open_real(RealSpec({"whole": WHOLE}, MACHINE_LATENCY_MS, None, congestion)) as swarm:
        job = swarm.job(push="off", loads=tuple(loads), pace=pace, repeats=repeats)
        said = list(swarm.ask(job, REAL_S + repeats * len(loads) * pace.length))
    found = []
    for load in loads:
        hops, whole = passes[load]
        step_ms = 1000 * median(_pooled(said, load).step_s)
        computed_ms = sum(ms for _, ms in whole.hop_ms) + 2 * whole.client_ms
        message_ms = max(0.0, step_ms - computed_ms - 2 * MACHINE_LATENCY_MS) / 2
        found.append(Machine(load, hops, message_ms))
    return tuple(found)
