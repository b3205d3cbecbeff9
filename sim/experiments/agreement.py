"""Kind "agreement": the same three hops on simulated streams, on libp2p in virtual time, and on real sockets.

Steps per second have to agree: within 5 % between the simulated stacks, and within 10 % with real sockets. What is
told to virtual time (passes, and what a message costs its two ends) is measured once per play, on another chain and at
another latency than what is compared; everything else is each stack's own model.

Invariants: without ``--stack real`` everything follows from parameters and seed. No figure is tuned per cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, product
from typing import Literal

from sim.agreement import (
    MACHINE_LATENCY_MS,
    Cell,
    Machine,
    Punctuality,
    Virtual,
    measure_machine,
    play_real,
    play_virtual,
)
from sim.kinds import Kind, Run
from sim.measuring import Load, Pace, Timed
from sim.real.passes import Passes
from sim.results import Gate, Outcome, Plot, Series, Table, combined, gate

Mode = Literal["relayed", "pushed"]
STACKS = ("ports", "libp2p")
SIMULATED_TOLERANCE = 0.05
REAL_TOLERANCE = 0.10
LATE_MAX = 0.005
"""A machine that delivers more packets late is too busy for the experiment."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What a step carries, and what that takes where this machine is not measured.

    Attributes:
        hop_ms: a pass, by number of blocks.
        client_ms: each of the client's two passes.
        message_ms: of both ends together.
    """

    rows: int = field(default=1, metadata={"min": 1, "max": 256})
    activations: Literal["int8", "bf16", "fp16", "fp32"] = "int8"
    hop_ms: tuple[tuple[int, float], ...] = ((2, 1.2), (3, 1.4))
    client_ms: float = field(default=0.3, metadata={"min": 0.0, "max": 1000.0})
    message_ms: float = field(default=1.2, metadata={"min": 0.0, "max": 1000.0})

    def machine(self) -> Machine:
        return Machine(Load(self.rows, self.activations), Passes(self.hop_ms, self.client_ms), self.message_ms)


@dataclass(frozen=True, slots=True)
class Params:
    """The settings: every latency with every bandwidth, mode and load.

    Attributes:
        latency_ms: one way, between any two hosts.
        mbit: up and down, of each host.
        repeats: on real sockets each load is timed so often, taking turns.
    """

    latency_ms: tuple[float, ...] = (10.0, 50.0)
    mbit: tuple[float, ...] = (10.0, 100.0)
    modes: tuple[Mode, ...] = ("relayed", "pushed")
    loads: tuple[LoadSpec, ...] = (
        LoadSpec(),
        LoadSpec(8, "fp32", ((2, 7.0), (3, 7.8)), 0.4, 1.4),
    )
    steps: int = field(default=16, metadata={"min": 2, "max": 1000})
    repeats: int = field(default=3, metadata={"min": 1, "max": 100})
    congestion: Literal["reno", "cubic", "bbr"] = field(
        default="reno", metadata={"about": "of TCP on real sockets; simulated links know no pacing, so not bbr"}
    )


def cells_of(params: Params) -> list[Cell]:
    """All settings, those of one network together."""
    loads = [spec.machine().load for spec in params.loads]
    return [Cell(*one) for one in product(params.latency_ms, params.mbit, params.modes, loads)]


def run(params: Params, how: Run) -> Outcome:
    """Play every cell on every stack, and hold them against each other."""
    if how.quick:
        params = replace(
            params, latency_ms=params.latency_ms[:1], mbit=params.mbit[:1], loads=params.loads[:1], steps=4, repeats=1
        )
    pace, cells = Pace(steps=params.steps), cells_of(params)
    machines = tuple(spec.machine() for spec in params.loads)
    real: dict[Cell, Timed] = {}
    punctuality: list[Punctuality] = []
    if how.stack == "real":
        machines, real, punctuality = _play_real(params, cells, pace, how)
    by_load = {machine.load: machine for machine in machines}
    jobs = [Virtual(stack, cell, by_load[cell.load], pace, how.seed) for cell in cells for stack in STACKS]
    played = how.map(play_virtual, jobs, "virtual time")
    found: dict[Cell, dict[str, Timed]] = {cell: {} for cell in cells}
    for job, (timed, _) in zip(jobs, played, strict=True):
        found[job.cell][job.stack] = timed
    for cell, timed in real.items():
        found[cell]["real"] = timed
    return Outcome(
        tables=(_steps_table(found), _machine_table(machines, bool(real)), *_late_tables(punctuality)),
        plots=(_plot(found),),
        gates=tuple(one for cell, timed in found.items() for one in _gates(cell, timed)),
        results=tuple(_result(cell, timed) for cell, timed in found.items()),
        notes=_notes(punctuality, bool(real)),
        trace_hash=combined(trace for _, trace in played),
        violations=tuple(_broken(found)),
    )


def _play_real(
    params: Params, cells: Sequence[Cell], pace: Pace, how: Run
) -> tuple[tuple[Machine, ...], dict[Cell, Timed], list[Punctuality]]:
    """This machine, and all cells on real sockets."""
    done = 0

    def tell() -> None:
        nonlocal done
        how.progress("real sockets", done, len(cells) + 1)
        done += 1

    tell()
    loads = tuple(spec.machine().load for spec in params.loads)
    machines = measure_machine(loads, pace, params.repeats, params.congestion)
    tell()
    real: dict[Cell, Timed] = {}
    late = []
    for _, group in groupby(cells, key=lambda cell: (cell.latency_ms, cell.mbit)):
        timed, punctuality = play_real(list(group), pace, params.repeats, params.congestion, tell)
        real |= timed
        late.append(punctuality)
    return machines, real, late


def _rate(timed: Timed | None) -> float | None:
    return None if timed is None else 1 / timed.median_s


def _ratio(one: Timed | None, other: Timed | None) -> float | None:
    return None if one is None or other is None else other.median_s / one.median_s


def _gates(cell: Cell, timed: Mapping[str, Timed]) -> list[Gate]:
    ports, libp2p = _rate(timed["ports"]), _rate(timed["libp2p"])
    gates = [gate(f"{cell}: libp2p as ports", libp2p, ports, SIMULATED_TOLERANCE, "ours")]
    if "real" in timed:
        wanted = _rate(timed["real"])
        gates += [
            gate(f"{cell}: {stack} as real", _rate(timed[stack]), wanted, REAL_TOLERANCE, "ours") for stack in STACKS
        ]
    return gates


def _broken(found: Mapping[Cell, Mapping[str, Timed]]) -> list[str]:
    """Cells whose stacks did not even use the same chain."""
    return [
        f"{cell}: chains {', '.join(sorted({' '.join(one.chain) for one in timed.values()}))}"
        for cell, timed in found.items()
        if len({one.chain for one in timed.values()}) > 1
    ]


def _steps_table(found: Mapping[Cell, Mapping[str, Timed]]) -> Table:
    rows = []
    for cell, timed in found.items():
        ports, libp2p, real = (timed.get(stack) for stack in (*STACKS, "real"))
        rows.append(
            (cell.latency_ms, cell.mbit, cell.mode, str(cell.load), _rate(ports), _rate(libp2p), _rate(real),
             real.spread if real else None, _ratio(libp2p, ports), _ratio(ports, real), _ratio(libp2p, real))
        )  # fmt: skip
    columns = (
        "ms one way", "Mbit/s", "hops", "load", "ports", "libp2p", "real", "spread of real", "libp2p / ports",
        "ports / real", "libp2p / real",
    )  # fmt: skip
    note = "steps/s by the median step; spread: half of the real steps lie so close to it; three hops, demo model"
    return Table("Agreement of the stacks, steps/s", columns, tuple(rows), note)


def _machine_table(machines: Sequence[Machine], measured: bool) -> Table:
    rows = tuple(
        (str(machine.load), " ".join(f"{blocks}: {ms:.2f}" for blocks, ms in machine.passes.hop_ms),
         machine.passes.client_ms, machine.message_ms)
        for machine in machines
    )  # fmt: skip
    how = "measured before this play" if measured else "from the scenario: measured earlier, perhaps elsewhere"
    columns = ("load", "ms of a pass, by blocks", "ms of each client pass", "ms of a message, both ends")
    return Table("What virtual time was told of the machine", columns, rows, how)


def _late_tables(punctuality: Sequence[Punctuality]) -> tuple[Table, ...]:
    if not punctuality:
        return ()
    rows = tuple((one.latency_ms, one.mbit, one.delivered, one.late, one.late_mean_us, one.busy) for one in punctuality)
    columns = ("ms one way", "Mbit/s", "packets", "share late by > 300 us", "mean us late", "load average")
    note = f"above {LATE_MAX} late the machine was too busy for the experiment"
    return (Table("How well this machine emulated the links", columns, rows, note),)


def _plot(found: Mapping[Cell, Mapping[str, Timed]]) -> Plot:
    names = tuple(str(cell) for cell in found)
    stacks = [stack for stack in (*STACKS, "real") if any(stack in timed for timed in found.values())]
    series = tuple(Series(stack, names, tuple(_rate(timed.get(stack)) for timed in found.values())) for stack in stacks)
    return Plot("Agreement of the stacks", "setting", "steps/s", series, "bar")


def _result(cell: Cell, timed: Mapping[str, Timed]) -> dict[str, object]:
    rates = {stack: _rate(one) for stack, one in timed.items()}
    where = {"latency_ms": cell.latency_ms, "mbit": cell.mbit, "mode": cell.mode, "load": str(cell.load)}
    return where | {"steps_per_s": rates, "spread": {stack: one.spread for stack, one in timed.items()}}


def _notes(punctuality: Sequence[Punctuality], measured: bool) -> tuple[str, ...]:
    told = (
        "Measured: what passes take (the demo model in exact mode, one thread, through the Compute port, at the pace "
        "of steps) and what a message costs its two ends (a swarm of one server at "
        f"{MACHINE_LATENCY_MS:g} ms, without passes and latency). Modelled: latency, bandwidth, queues, flow control, "
        "and in the three-hop chain who sends what to whom, which is the production code."
    )
    if not measured:
        return (told, "Real sockets were not asked for, or this machine has no network namespaces.")
    late = max(one.late for one in punctuality)
    busy = "; too busy for the experiment: repeat it on a quiet machine" if late > LATE_MAX else ""
    return (told, f"At most {100 * late:.2f} % of the packets came more than 300 us late{busy}.")


KIND = Kind(
    "agreement", "the same three hops on simulated streams, on libp2p and on real sockets: steps/s agree", Params,
    run, ("real", "libp2p"), parallel=True, measured=True,
)  # fmt: skip
