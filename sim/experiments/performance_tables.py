"""What kind "performance" prints: the papers' figures beside ours, with gates where a cell was seen.

Invariants: pure; a cell's label says what it was used for: S seen, R recalled, cal fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.calibrated import Fit, Setup
from sim.paper import CLIENTS_8_SLOWER, FORWARDS, NEAR, REAL_FORWARDS, REAL_STEPS, STEPS, Cell, Net
from sim.rates import ForwardJob, Job, Rates, StepsJob
from sim.results import Gate, Outcome, Plot, Series, Source, Table, combined, gate
from sim.shapes import SHAPES

CALIBRATION_TOLERANCE = 0.01
"""What solving for the constants may leave over."""
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Found:
    """All that was played, by what it was for."""

    setups: Sequence[Setup]
    fits: Mapping[str, Fit]
    jobs: Mapping[Any, Job]
    played: Mapping[Any, Rates]
    forwards_fitted: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One cell of the papers and ours beside it.

    Attributes:
        what: tokens in the caches, or sequences of 128 tokens.
        push: the mode that the papers' runs had; ours: in that mode, of which ``relayed`` and ``pushed`` are both.
    """

    setup: Setup
    net: Net | None
    what: int
    paper: Cell
    source: Source
    push: bool
    ours: float
    relayed: float
    pushed: float | None
    formula: float | None = None

    @property
    def name(self) -> str:
        return f"{self.setup.name}, {self.net or 'real network'}, {self.what}"


def outcome(found: Found) -> Outcome:
    """Tables, plots and gates of everything that was played."""
    steps, forwards = list(steps_rows(found)), list(forward_rows(found))
    tables = [_table("Steps per second of one sequence", "tokens", steps, _STEPS_NOTE)]
    if forwards:
        tables.append(_table("Tokens per second of parallel forwards", "x 128 tokens", forwards, _FORWARDS_NOTE))
    clients = _clients(found)
    tables += [table for table in (clients, _constants(found)) if table is not None]
    return Outcome(
        tables=tuple(tables),
        plots=tuple(_plots(steps, forwards)),
        gates=tuple(_gate(row) for row in (*steps, *forwards)),
        results=tuple(_result("steps/s", row) for row in steps) + tuple(_result("tokens/s", row) for row in forwards),
        notes=_NOTES,
        trace_hash=combined(found.played[key].trace for key in found.jobs),
    )


# -- rows ------------------------------------------------------------------------------------------------------------


def steps_rows(found: Found) -> Iterator[Row]:
    """Steps/s, in the order of the papers' table."""
    for setup in found.setups:
        modes = {push: _by_cell(found, setup, push) for push in (False, True)}
        for (net, length), ours in modes[setup.push].items():
            paper = REAL_STEPS[length] if setup.regions else STEPS[setup.name][net][length]
            calibrates = net == NEAR and setup.name in ("bloom-3", "llama-3")
            relayed, pushed = modes[False].get((net, length)), modes[True].get((net, length))
            yield Row(
                setup, None if setup.regions else net, length, paper, _source(setup, paper, calibrates), setup.push,
                ours, relayed if relayed is not None else float("nan"), pushed,
                _formula(setup, found, net, length),
            )  # fmt: skip


def _by_cell(found: Found, setup: Setup, push: bool) -> dict[tuple[Net, int], float]:
    job = found.jobs["steps", setup.name, push]
    assert isinstance(job, StepsJob)
    cells = [(net, length) for length in job.lengths for net in job.nets]
    return dict(zip(cells, found.played["steps", setup.name, push].values, strict=True))


def forward_rows(found: Found) -> Iterator[Row]:
    """Tokens/s; the papers' go by the client, pushed ones through a session."""
    for key, job in found.jobs.items():
        if isinstance(job, ForwardJob):
            setup, rate, other = job.setup, found.played[key].values[0], found.played.get(("pushed", *key[1:]))
            cells = REAL_FORWARDS if setup.regions else FORWARDS[setup.name][job.net]
            calibrates = found.forwards_fitted and (setup.name, job.net, job.sequences) == ("bloom-3", NEAR, 64)
            paper = cells[job.sequences]
            source = _source(setup, paper, calibrates)
            pushed = None if other is None else other.values[0]
            net = None if setup.regions else job.net
            yield Row(setup, net, job.sequences, paper, source, False, rate, rate, pushed)


def _source(setup: Setup, paper: Cell, calibrates: bool) -> Source:
    """What a cell may decide: nothing where the network is unknown."""
    if setup.regions:
        return "R"
    return "cal" if calibrates else paper.found


def _formula(setup: Setup, found: Found, net: Net, length: int) -> float | None:
    """By the closed formula, where everybody is as far from everybody."""
    if setup.regions:
        return None
    carry_s = SHAPES[setup.shape].hidden_bytes() / net.bytes_per_s
    fit = found.fits[setup.table]
    return 1 / fit.step_at(setup.servers, setup.crossings(setup.push), net.one_way_s + carry_s, length)


def _gate(row: Row) -> Gate:
    tolerance = CALIBRATION_TOLERANCE if row.source == "cal" else row.setup.tolerance
    return gate(row.name, row.ours, row.paper.value, tolerance, row.source)


# -- tables ----------------------------------------------------------------------------------------------------------


def _table(title: str, what: str, rows: Sequence[Row], note: str) -> Table:
    columns = (
        "setup", "Mbit/s", "RTT ms", what, "paper", "cell", "ours", "ours/paper", "as in the paper", "relayed",
        "pushed", "formula",
    )  # fmt: skip
    return Table(title, columns, tuple(_cells(row) for row in rows), note)


def _cells(row: Row) -> tuple[str | float | int | None, ...]:
    net = (row.net.mbit_per_s, row.net.rtt_ms) if row.net else (UNKNOWN, UNKNOWN)
    label = f"{row.source} (not gated)" if row.net is None else row.source
    return (
        row.setup.title, *net, row.what, row.paper.value, row.paper.found if row.net is None else label,
        _rounded(row.ours), _rounded(row.ours / row.paper.value), "push" if row.push else "relay",
        _rounded(row.relayed), _rounded(row.pushed), _rounded(row.formula),
    )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else float(f"{value:.4g}")


def _clients(found: Found) -> Table | None:
    rows = []
    for key, rates in found.played.items():
        if key[0] == "clients" and key[1] > 1:
            _, clients, shared = key
            alone = found.played["clients", 1, shared].values[0]
            mean = sum(rates.values) / len(rates.values)
            rows.append(
                (clients, "shared" if shared else "one by one", _rounded(alone), _rounded(min(rates.values)),
                 _rounded(mean), _rounded(sum(rates.values)), f"{100 * (1 - mean / alone):.0f} %")
            )  # fmt: skip
    columns = ("clients", "their steps", "alone", "slowest", "mean", "all together", "slower than alone")
    note = (
        f"BLOOM-176B on 3 x A100, {NEAR}, 128 tokens, relayed; steps/s. The paper: about "
        f"{100 * CLIENTS_8_SLOWER.value:.0f} % slower with 8 [{CLIENTS_8_SLOWER.found}, not gated]; its servers "
        "computed steps one by one. How a step divides between client and servers is not known [assumed], and a "
        "server's software is counted as if it did one thing at a time."
    )
    return Table("Clients at once", columns, tuple(sorted(rows)), note) if rows else None


def _constants(found: Found) -> Table:
    rows = tuple(
        (table, _rounded(fit.step_s), _rounded(1e6 * fit.cached_s), 1e3 * fit.overhead_s, fit.pass_s and
         _rounded(fit.pass_s), _rounded(1e3 * fit.token_s))
        for table, fit in found.fits.items()
    )  # fmt: skip
    columns = ("table", "step s", "per cached token us", "per hop ms", "forward pass s", "forward per token ms")
    return Table("Constants", columns, rows, _CONSTANTS_NOTE)


def _result(unit: str, row: Row) -> dict[str, Any]:
    return {
        "setup": row.setup.name,
        "network": str(row.net or UNKNOWN),
        "what": row.what,
        "unit": unit,
        "paper": row.paper.value,
        "cell": row.source,
        "ours": row.ours,
        "relayed": row.relayed if row.relayed == row.relayed else None,
        "pushed": row.pushed,
    }


def _plots(steps: Sequence[Row], forwards: Sequence[Row]) -> Iterator[Plot]:
    groups = [("steps/s", "tokens in the caches", steps), ("tokens/s", "sequences of 128 tokens", forwards)]
    for unit, what, rows in groups:
        for value in sorted({row.what for row in rows}):
            chosen = [row for row in rows if row.what == value]
            places = tuple(f"{row.setup.name} {_short(row.net)}" for row in chosen)
            series = [
                Series("paper", places, tuple(row.paper.value for row in chosen)),
                Series("ours, as in the paper", places, tuple(row.ours for row in chosen)),
            ]
            yield Plot(f"{unit}, {value} {what}", "", unit, tuple(series), kind="bar")


def _short(net: Net | None) -> str:
    return f"{net.mbit_per_s:g}/{net.rtt_ms:g}" if net else "real"


_STEPS_NOTE = (
    "cell: S seen, R recalled (not gated), cal fitted to. ours: in the mode that the papers' runs had; formula: the "
    "same, closed. Gates: Llama 5 %, BLOOM 15 %, on cells that were seen and not fitted to. 14 servers: data sheets, "
    "data centres' distances and assumed homes; their network is unknown, so nothing is gated."
)
_FORWARDS_NOTE = (
    "8 bits, micro-batches of 1,024 tokens, all in flight, 256 KiB of window per stream. pushed: through a session, "
    "the product's way to push batches; not played where it would move gigabytes for a cell that is no gate. Llama's "
    "cells are all recalled with little trust: its row follows from data sheets alone."
)
_CONSTANTS_NOTE = (
    "Fitted to 1.71, 1.54 and (forwards) 253.6 for BLOOM, to 2.29 and 2.02 for Llama; per hop: the 18 ms of the "
    "authors' router; forward pass of BLOOM: one step on 8 GPUs of a host [R], of Llama: data sheet."
)
_NOTES = (
    "Fixed before fitting: BLOOM relayed (its rows are older than pushes), Llama pushed (measured after them), 16 bits "
    "for steps, 8 for forwards, round trips as named, one window of 256 KiB per stream; sim/calibrated.py says why.",
    "Variants tried before that, with a closed model: 8 for each model's steps (relay or push, 8 or 16 bits, 100 ms as "
    "a round trip or one way) and 149 for forwards, of which the natural one is used, not the best; here: 1.",
    "This validates the simulator's network and queues on the papers' compute. It says nothing about how fast this "
    "project is on such hardware.",
)
