"""Kind "scale": a thousand servers and ten thousand clients: lookups, routing time and record load, as a swarm grows.

One of the paper's open questions. What a member has to carry must not grow with the swarm, and a newcomer must know a
chain in seconds. Only on ``ports``: the DHT's verbs are one delayed shared store, record exchange is production code.

Invariants: times of the processor are measured on this machine, reported apart, and no part of the trace.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median, quantiles

from sim.crowd import Crowd, Load, play
from sim.kinds import Kind, Run
from sim.results import Outcome, Plot, Series, Table, combined, gate

PLAN_MS = 10.0
READY_S = 10.0
GROWTH = 4.0
"""A member of the largest swarm may carry so many times what one of a hundred servers carries."""


@dataclass(frozen=True, slots=True)
class Params:
    """How the swarm grows."""

    servers: tuple[int, ...] = field(default=(10, 30, 100, 300, 1000), metadata={"min": 10, "max": 5000})
    clients_per_server: int = field(default=10, metadata={"min": 0, "max": 100, "about": "in all, over the whole time"})
    at_once: int = field(default=500, metadata={"min": 1, "max": 10_000, "about": "clients at a time, at most"})
    fill_s: float = field(default=120.0, metadata={"min": 1.0, "about": "in which the servers join"})
    quiet_s: float = field(default=60.0, metadata={"min": 1.0, "about": "measured without clients"})
    crowd_s: float = field(default=600.0, metadata={"min": 1.0, "about": "in which the clients come"})
    stay_s: float = field(default=20.0, metadata={"min": 0.0, "about": "of each client"})
    latency_ms: float = field(default=30.0, metadata={"min": 0.0, "about": "one way"})


def run(params: Params, how: Run) -> Outcome:
    """Every size."""
    sizes = sorted(params.servers)
    sizes = sizes[:2] if how.quick else sizes
    part = 0.25 if how.quick else 1.0
    jobs = [
        Crowd(
            servers=size, clients=round(part * size * params.clients_per_server), at_once=params.at_once,
            fill_s=part * params.fill_s, quiet_s=part * params.quiet_s, crowd_s=part * params.crowd_s,
            stay_s=params.stay_s, latency_s=params.latency_ms / 1000, seed=how.seed,
        )
        for size in reversed(sizes)
    ]  # fmt: skip
    loads = dict(zip((job.servers for job in jobs), how.map(play, jobs, "a growing swarm"), strict=True))
    loads = {size: loads[size] for size in sizes}
    largest = loads[sizes[-1]]
    lost = float(sum(load.failed for load in loads.values()))
    known = f"{sizes[-1]} servers: s until a client knows a chain, 95 %"
    gates = [
        gate(known, _p95(largest.ready_s), READY_S, 0.0, "ours", "at most"),
        gate("clients that found no chain", lost, 0.0, 0.0, "ours", "at most"),
    ]
    if 100 in loads and sizes[-1] > 100:
        growth = largest.record_bytes_per_min / loads[100].record_bytes_per_min
        gates.append(
            gate(f"record bytes per server, {sizes[-1]} to 100 servers", growth, GROWTH, 0.0, "ours", "at most")
        )
    return Outcome(
        tables=(_table(loads), _cpu(loads)),
        plots=_plots(loads),
        gates=tuple(gates),
        results=tuple(_result(size, load) for size, load in loads.items()),
        notes=("Planning is the production planner on the client's real view; its processor time is this machine's.",),
        trace_hash=combined(load.trace for load in loads.values()),
    )


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else (values or [0.0])[0]


def _table(loads: dict[int, Load]) -> Table:
    columns = (
        "servers", "known, fewest", "known, mean", "kB/min per server", "messages/min per server",
        "lookups/min per server", "clients", "at once", "failed", "s to a chain, median",
        "95 %", "hops", "lookups per client", "kB per client",
    )  # fmt: skip
    rows = tuple(
        (
            size, load.known_min, round(load.known_mean, 1), round(load.record_bytes_per_min / 1e3, 1),
            round(load.messages_per_min, 1), round(load.lookups_per_min, 2), len(load.ready_s), load.most_at_once,
            load.failed, round(median(load.ready_s or [0.0]), 2), round(_p95(load.ready_s), 2), round(load.hops, 1),
            round(load.lookups_per_client, 2), round(load.client_bytes / 1e3, 1),
        )
        for size, load in loads.items()
    )  # fmt: skip
    note = "Per server: a quiet minute without clients. The clients' share is counted apart."
    return Table("A growing swarm: who carries what", columns, rows, note)


def _cpu(loads: dict[int, Load]) -> Table:
    rows = tuple(
        (size, round(1e3 * median(load.plan_cpu_s or [0.0]), 2), round(1e3 * _p95(load.plan_cpu_s), 2), PLAN_MS)
        for size, load in loads.items()
    )
    columns = ("servers", "plan, ms median", "plan, ms 95 %", "limit on a quiet machine")
    return Table("Routing time on this machine", columns, rows, f"{BLOCKS_NOTE} Processor time, measured here.")


BLOCKS_NOTE = "A chain over 80 blocks, all servers usable."


def _plots(loads: dict[int, Load]) -> tuple[Plot, ...]:
    sizes = tuple(float(size) for size in loads)
    carried = Series("kB/min per server", sizes, tuple(load.record_bytes_per_min / 1e3 for load in loads.values()))
    asked = Series("kB per client", sizes, tuple(load.client_bytes / 1e3 for load in loads.values()))
    ready = Series("median", sizes, tuple(median(load.ready_s or [0.0]) for load in loads.values()))
    late = Series("95 %", sizes, tuple(_p95(load.ready_s) for load in loads.values()))
    return (
        Plot("Record load as a swarm grows", "servers", "kB", (carried, asked), log_x=True, log_y=True),
        Plot("Until a newcomer knows a chain", "servers", "virtual seconds", (ready, late), log_x=True),
    )


def _result(size: int, load: Load) -> dict[str, object]:
    flat = {name: value for name, value in asdict(load).items() if name not in ("ready_s", "plan_cpu_s", "trace")}
    times = {"ready_median_s": median(load.ready_s or [0.0]), "ready_p95_s": _p95(load.ready_s)}
    return {"servers": size, **flat, **times, "plan_median_ms": 1e3 * median(load.plan_cpu_s or [0.0])}


KIND = Kind(
    "scale", "lookups, routing time and record load as a swarm grows to a thousand servers", Params, run, ("ports",),
    parallel=True, measured=True,
)  # fmt: skip
