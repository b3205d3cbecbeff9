"""Kind "beyond": the papers' rows once more, with what the product's protocol does better as switches.

Every switch alone, then all together, on the same compute, the same client and the same network as the row's base,
which is the papers' protocol with constants solved on their cells. So a factor here is gained by the protocol, and
nothing of it is this project's own speed on such hardware.

Invariants: nothing is fitted here. A switch that the product does not have is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from p2pllm.errors import UserError
from sim.calibrated import SETUPS, Fit, Setup
from sim.experiments.beyond_tables import Cells, outcome
from sim.experiments.performance import Params as Calibration
from sim.experiments.performance import calibrated
from sim.kinds import Kind, Run
from sim.paper import FAR, NEAR, NETS, Net
from sim.rates import PAPER, PAPER_FORWARD, ClientsJob, ForwardJob, Job, PrefillJob, Protocol, StepsJob, play
from sim.results import Outcome

Switch = Literal["push", "8-bit", "overhead", "window", "chunks", "batching", "speculation"]
BASE, ALL = "paper", "all"
MISSING: Mapping[str, str] = {"speculation": "the product does not speculate yet"}
"""Switches that nothing stands behind."""

OVERHEAD_S = 0.002
"""A hop's software where it takes 2 ms, not the 18 ms of the authors' router; the product's own is less on one machine
(docs/benchmarks)."""
FORWARD_CHUNKS = {1: 32, 64: 512}
"""Tokens of a chunk in a forward through a session, by sequences: so that hops overlap, and passes stay large."""
IN_FLIGHT = 8
PROMPT_TOKENS = 2048
PREFILL_CHUNK = 128
"""The product's own chunk of a prefill, with its own number in flight."""
PREFILLS_IN_FLIGHT = 4

STEP_SWITCHES: tuple[Switch, ...] = ("push", "8-bit", "overhead")
FORWARD_SWITCHES: tuple[Switch, ...] = ("window", "overhead", "chunks", "push")


@dataclass(frozen=True, slots=True)
class Params:
    """Which switches, on which rows."""

    setups: tuple[Literal["bloom-3", "bloom-12", "llama-3"], ...] = ("bloom-3", "bloom-12", "llama-3")
    switches: tuple[Switch, ...] = field(
        default=("push", "8-bit", "overhead", "window", "chunks", "batching"),
        metadata={"about": "each alone, then all of them together"},
    )
    clients: int = field(default=8, metadata={"min": 2, "max": 64, "about": "that share a swarm"})


def run(params: Params, how: Run) -> Outcome:
    """Solve for the constants, then play every row with every switch."""
    for switch in params.switches:
        if switch in MISSING:
            known = ", ".join(name for name in get_args(Switch) if name not in MISSING)
            raise UserError(f"switches: {switch!r} cannot be played: {MISSING[switch]}; there are: {known}")
    setups = [SETUPS[name] for name in params.setups]
    fits = calibrated(setups, Calibration(sequences=() if how.quick else (1, 64)), how)
    jobs = jobs_of(setups, fits, params, how)
    order = sorted(jobs, key=lambda key: -_weight(jobs[key]))
    played = dict(zip(order, how.map(play, [jobs[key] for key in order], "switches"), strict=True))
    return outcome({key: (jobs[key], played[key]) for key in jobs}, params.switches)


def jobs_of(setups: Sequence[Setup], fits: Mapping[str, Fit], params: Params, how: Run) -> dict[Cells, Job]:
    """All that is played, by table, row and switch."""
    jobs: dict[Cells, Job] = {}
    for setup in setups:
        fit = fits[setup.table]
        jobs.update(_steps(setup, fit, params, how))
        if setup.table == "bloom" and not (how.quick and setup.servers > 3):
            jobs.update(_forwards(setup, fit, params, how))
        if setup.name == "bloom-3" and not how.quick:
            jobs.update(_prefills(setup, fit, params, how))
            jobs.update(_clients(setup, fit, params, how))
    return jobs


def _steps(setup: Setup, fit: Fit, params: Params, how: Run) -> dict[Cells, Job]:
    """Steps of one sequence."""
    base = replace(PAPER, push=setup.push)
    wanted = [name for name in STEP_SWITCHES if name in params.switches and not (name == "push" and setup.push)]
    jobs: dict[Cells, Job] = {}
    for name in (BASE, *wanted, ALL):
        changes = wanted if name == ALL else [name]
        long = name in (BASE, ALL) and not how.quick
        jobs["steps", setup.name, "", 0, name] = StepsJob(
            setup=setup, fit=_cheaper(fit, changes), protocol=_changed(base, changes), nets=NETS,
            lengths=(128, 2048) if long else (128,), seed=how.seed,
        )  # fmt: skip
    return jobs


def _forwards(setup: Setup, fit: Fit, params: Params, how: Run) -> dict[Cells, Job]:
    """Forwards; large batches move gigabytes: of three servers on two networks, of twelve on the slowest alone."""
    wanted = [name for name in FORWARD_SWITCHES if name in params.switches]
    jobs: dict[Cells, Job] = {}
    for net in NETS:
        for sequences in (1,) if how.quick else (1, 64):
            if sequences > 1 and net not in ((FAR,) if setup.servers > 3 else (NEAR, FAR)):
                continue
            rows = (BASE, ALL) if setup.servers > 3 else (BASE, *wanted, ALL)
            for name in rows:
                changes = wanted if name == ALL else [name]
                jobs["forwards", setup.name, str(net), sequences, name] = _forward(
                    setup, fit, net, sequences, changes, how.seed
                )
    return jobs


def _forward(setup: Setup, fit: Fit, net: Net, sequences: int, changes: Sequence[str], seed: int) -> Job:
    """By the client, or through a session where steps are cut or pushed."""
    protocol, fit = _changed(PAPER_FORWARD, changes), _cheaper(fit, changes)
    if "chunks" not in changes and "push" not in changes:
        return ForwardJob(setup=setup, fit=fit, protocol=protocol, net=net, sequences=sequences, seed=seed)
    if "chunks" in changes:
        protocol = replace(protocol, chunk_tokens=FORWARD_CHUNKS[sequences])
    protocol = replace(protocol, in_flight=IN_FLIGHT)
    return PrefillJob(
        setup=setup, fit=fit, protocol=protocol, net=net, tokens=128, rows=sequences, tail=-1, seed=seed
    )  # fmt: skip


def _prefills(setup: Setup, fit: Fit, params: Params, how: Run) -> dict[Cells, Job]:
    """A long prompt until its first token: in one piece, then as the product does it."""
    whole = replace(PAPER, chunk_tokens=PROMPT_TOKENS)
    chunked = replace(PAPER, chunk_tokens=PREFILL_CHUNK, in_flight=PREFILLS_IN_FLIGHT)
    protocols = {BASE: whole}
    if "chunks" in params.switches:
        protocols["chunks"] = chunked
        protocols[ALL] = replace(_changed(chunked, params.switches))
    return {
        ("prefills", setup.name, str(net), PROMPT_TOKENS, name): PrefillJob(
            setup=setup, fit=_cheaper(fit, params.switches if name == ALL else ()), protocol=protocol, net=net,
            tokens=PROMPT_TOKENS, seed=how.seed,
        )
        for net in NETS
        for name, protocol in protocols.items()
    }  # fmt: skip


def _clients(setup: Setup, fit: Fit, params: Params, how: Run) -> dict[Cells, Job]:
    """Several clients: steps one by one, shared, and shared with everything else."""
    alone = replace(PAPER, shared_steps=False)
    protocols = {BASE: alone}
    if "batching" in params.switches:
        protocols["batching"] = PAPER
        protocols[ALL] = _changed(PAPER, params.switches)
    return {
        ("clients", setup.name, "", params.clients, name): ClientsJob(
            setup=setup, fit=_cheaper(fit, params.switches if name == ALL else ()), protocol=protocol,
            clients=params.clients, seed=how.seed,
        )
        for name, protocol in protocols.items()
    }  # fmt: skip


def _changed(protocol: Protocol, changes: Sequence[str]) -> Protocol:
    """With the switches that are matters of the protocol."""
    return replace(
        protocol,
        push=protocol.push or "push" in changes,
        activations="int8" if "8-bit" in changes else protocol.activations,
        window_bytes=None if "window" in changes else protocol.window_bytes,
    )


def _cheaper(fit: Fit, changes: Sequence[str]) -> Fit:
    return replace(fit, overhead_s=OVERHEAD_S) if "overhead" in changes else fit


def _weight(job: Job) -> float:
    """About how long a job takes to play: the tokens that travel."""
    match job:
        case ForwardJob():
            tokens = job.sequences * 128
        case PrefillJob():
            tokens = job.rows * job.tokens
        case StepsJob():
            tokens = 2 * max(job.lengths)
        case _:
            tokens = 2000
    return float(tokens * job.setup.servers)


KIND = Kind("beyond", "the papers' rows with each improvement of the protocol as a switch, same compute", Params, run)
