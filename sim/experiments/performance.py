"""Kind "performance": the papers' tables of BLOOM-176B and Llama-2-70B, by the production client and servers.

Constants are solved for on the calibration cells (``sim.calibrated`` says which, and what was fixed before), then every
row is played in the mode that the papers' runs had, and in the other one. Cells that were seen are gates; cells that
are recalled, and servers whose network nobody wrote down, are reported only.

Invariants: nothing is tuned per cell. A match validates the simulator's network and queues; it is never our own speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sim.calibrated import FITTED_LENGTH, LONG_LENGTH, SETUPS, Fit, Setup
from sim.experiments.performance_tables import Found, outcome
from sim.kinds import Kind, Run
from sim.paper import FORWARDS, NEAR, NETS, STEPS, Net
from sim.rates import (
    MICRO_BATCH_TOKENS,
    PAPER,
    PAPER_FORWARD,
    SEQUENCE_TOKENS,
    ClientsJob,
    ForwardJob,
    Job,
    PrefillJob,
    Rates,
    StepsJob,
    play,
)
from sim.results import Outcome

Name = Literal["bloom-3", "bloom-12", "llama-3", "bloom-14"]
LENGTHS = (FITTED_LENGTH, LONG_LENGTH)
PUSHED_IN_FLIGHT = 8
CALIBRATORS = {"bloom": "bloom-3", "llama": "llama-3"}
"""Whose cells a table's constants are solved on."""


@dataclass(frozen=True, slots=True)
class Params:
    """Which rows."""

    setups: tuple[Name, ...] = field(default=("bloom-3", "bloom-12", "llama-3", "bloom-14"))
    sequences: tuple[Literal[1, 64], ...] = field(
        default=(1, 64), metadata={"about": "sequences of 128 tokens in a parallel forward; none: no forwards"}
    )
    clients: int = field(default=8, metadata={"min": 0, "max": 64, "about": "that generate at once; 0: leave it out"})
    steps: int = field(default=3, metadata={"min": 1, "max": 100, "about": "measured at each length"})


def run(params: Params, how: Run) -> Outcome:
    """Calibrate, then play all rows."""
    setups = [SETUPS[name] for name in params.setups if not (how.quick and name == "bloom-14")]
    fits = calibrated(setups, params, how)
    jobs = jobs_of(setups, fits, params, how)
    order = sorted(jobs, key=lambda key: -weight(jobs[key]))  # the longest first: no process ends up alone with them
    played = dict(zip(order, how.map(play, [jobs[key] for key in order], "rows"), strict=True))
    return outcome(Found(setups, fits, jobs, played, forwards_fitted=fits_forwards(params, how)))


def fits_forwards(params: Params, how: Run) -> bool:
    """Whether forwards are calibrated, too: the cell takes seconds, so a quick play keeps the closed model's value."""
    return not how.quick and 64 in params.sequences


def calibrated(setups: Sequence[Setup], params: Params, how: Run) -> dict[str, Fit]:
    """The constants of every table that occurs, solved on its cells; by table."""
    tables = sorted({setup.table for setup in setups})
    jobs: list[Job] = []
    for table in tables:
        setup = SETUPS[CALIBRATORS[table]]
        protocol = replace(PAPER, push=setup.push)
        jobs.append(StepsJob(setup=setup, fit=setup.fit, protocol=protocol, steps=params.steps, seed=how.seed))
    if "bloom" in tables and fits_forwards(params, how):
        jobs.append(ForwardJob(setup=SETUPS["bloom-3"], fit=SETUPS["bloom-3"].fit, seed=how.seed))
    fits = {table: SETUPS[CALIBRATORS[table]].fit for table in tables}
    for job, found in zip(jobs, how.map(play, jobs, "calibration"), strict=True):
        fits[job.setup.table] = solved(job, found, fits[job.setup.table])
    return fits


def solved(job: Job, found: Rates, fit: Fit) -> Fit:
    """``fit`` with the constants that let ``job`` hit its cells."""
    name = job.setup.name
    if isinstance(job, StepsJob):
        short, long = (STEPS[name][NEAR][length].value for length in LENGTHS)
        return fit.solved_steps(found.values[0], short, long)
    parts = 64 * SEQUENCE_TOKENS // MICRO_BATCH_TOKENS
    # The first micro-batch passes all servers, and all others follow through the last one.
    critical = MICRO_BATCH_TOKENS * (job.setup.servers + parts - 1) / job.setup.servers
    return fit.solved_forwards(found.values[0], FORWARDS[name][NEAR][64].value, 64 * SEQUENCE_TOKENS, critical)


Key = tuple[str | int | bool | float, ...]


def jobs_of(setups: Sequence[Setup], fits: dict[str, Fit], params: Params, how: Run) -> dict[Key, Job]:
    """All that is played, by what it is for."""
    jobs: dict[Key, Job] = {}
    for setup in setups:
        fit, nets = fits[setup.table], NETS if not setup.regions else (NEAR,)
        for push in (False, True):
            # Long prefills are what takes time: a quick play has them only where the cells are gates of 5 %.
            lengths = LENGTHS if not how.quick or (setup.table == "llama" and push) else LENGTHS[:1]
            jobs["steps", setup.name, push] = StepsJob(
                setup=setup, fit=fit, protocol=replace(PAPER, push=push), nets=nets, lengths=lengths,
                steps=params.steps, seed=how.seed,
            )  # fmt: skip
        for net in nets:
            for sequences in params.sequences:
                if how.quick and (sequences > 1 or setup.servers > 3):  # they move gigabytes, or decide nothing
                    continue
                place = (setup.name, net.mbit_per_s, net.rtt_ms, sequences)
                jobs["forward", *place] = ForwardJob(setup=setup, fit=fit, net=net, sequences=sequences, seed=how.seed)
                if sequences == 1 or setup.servers <= 3:  # the others would move gigabytes for a cell that is no gate
                    jobs["pushed", *place] = pushed(setup, fit, net, sequences, how.seed)
    alone = next((setup for setup in setups if setup.name == "bloom-3"), None)
    if params.clients and alone is not None and not how.quick:
        for clients in (1, params.clients):
            for shared in (False, True):
                jobs["clients", clients, shared] = ClientsJob(
                    setup=alone, fit=fits["bloom"], protocol=replace(PAPER, shared_steps=shared), clients=clients,
                    seed=how.seed,
                )  # fmt: skip
    return jobs


def pushed(setup: Setup, fit: Fit, net: Net, sequences: int, seed: int) -> Job:
    """A forward in the other mode: this product pushes through sessions, with the same micro-batches in flight."""
    protocol = replace(PAPER_FORWARD, push=True, in_flight=PUSHED_IN_FLIGHT)
    return PrefillJob(
        setup=setup, fit=fit, protocol=protocol, net=net, rows=sequences, tokens=SEQUENCE_TOKENS, tail=-1, seed=seed
    )


def weight(job: Job) -> float:
    """About how long a job takes to play: the tokens that travel."""
    if isinstance(job, ForwardJob):
        tokens = job.sequences * SEQUENCE_TOKENS
    elif isinstance(job, PrefillJob):
        tokens = job.rows * job.tokens
    elif isinstance(job, StepsJob):
        tokens = 2 * max(job.lengths)
    else:
        tokens = 2000
    return float(tokens * job.setup.servers)


KIND = Kind("performance", "the papers' tables of steps/s and tokens/s, calibrated on named cells", Params, run)
