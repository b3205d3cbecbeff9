"""Kind "adversary": somebody kills exactly the servers that a victim uses, at the worst moments of its generation.

The adversary knows the victim's chain at every moment, may kill so many servers, no more than a few a minute, and
searches: each kill is tried at positions all over the generation, at the last one, in the middle of a replay and just
after a re-route, on every server of the chain, and the worst one stays. Beside it: as many kills of the victim's
servers at random moments, and as many of anybody's. What was killed comes back after a while.

Invariants: every play follows from its schedule, which is told; the search is greedy, so a worse schedule may exist.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sim.disorder import Event, Fault, Schedule, in_order, schedule_of, texts_of
from sim.experiments.disorder import jobs_of, percentile
from sim.experiments.patterns import BEGIN_S, took_s, wrong_of
from sim.handoffs import ONE_SHOT, STAGES
from sim.kinds import Kind, Run
from sim.results import Cell, Outcome, Plot, Series, Table, combined, gate
from sim.trial import JobReport, Report, Trial, play

MINUTE_S = 60.0
WITHIN = 0.6
"""How far into a step or a replay a kill falls: its message has arrived, its answer has not."""
AFTER_S = 0.001
"""Just after a re-route."""
SEEDS_APART = 1000


@dataclass(frozen=True, slots=True)
class Params:
    """The swarm, the victim, and what the adversary may do."""

    replicas: int = field(default=3, metadata={"min": 2, "max": 16, "about": "of each of four stages"})
    new_tokens: int = field(default=128, metadata={"min": 8, "max": 1000})
    fault: Literal["crash", "hang"] = field(default="crash", metadata={"about": "how servers are killed"})
    kills: int = field(default=4, metadata={"min": 1, "max": 20})
    kills_per_minute: int = field(default=4, metadata={"min": 1, "max": 60})
    repair_s: float = field(default=20.0, metadata={"min": 0.1, "about": "after so long a killed server is back"})
    positions: int = field(
        default=5, metadata={"min": 1, "max": 50, "about": "moments that are tried, beside special ones"}
    )
    random_runs: int = field(default=30, metadata={"min": 2, "max": 1000})
    targeted_runs: int = field(default=8, metadata={"min": 1, "max": 1000})
    near_ms: float = field(default=2.0, metadata={"min": 0.0, "about": "one way, within a region"})
    far_ms: float = field(default=25.0, metadata={"min": 0.0, "about": "one way, between regions"})


@dataclass(frozen=True, slots=True)
class Moment:
    """A kill that may be tried, and why then."""

    event: Event
    why: str
    position: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a schedule of kills does to the victim."""

    took_s: float
    lost: int
    errors: int
    violations: tuple[str, ...]
    trace: str
    report: Report = field(repr=False, compare=False)


def run(params: Params, how: Run) -> Outcome:
    """Search, then compare."""
    if how.quick:
        params = replace(
            params, new_tokens=min(params.new_tokens, 24), kills=min(params.kills, 2), positions=2, random_runs=3,
            targeted_runs=1,
        )  # fmt: skip
    calm = cost_of((params, how.seed, ()))
    chosen: list[tuple[Moment, float]] = []
    targeted: list[Cost] = []
    anybody: list[Cost] = []
    if how.faults is not None:
        told = schedule_of(how.faults)
        worst = cost_of((params, how.seed, told))
    else:
        chosen, tried = search(params, calm, how)
        worst = tried[-1] if tried else calm
        told = in_order(moment.event for moment, _ in chosen)
        seeds = [how.seed * SEEDS_APART + number for number in range(max(params.random_runs, params.targeted_runs))]
        targeted = how.map(
            targeted_at_random, [(params, how.seed, one) for one in seeds[: params.targeted_runs]], "its own"
        )
        anybody = how.map(
            cost_of, [anybody_at_random(params, how.seed, calm, one) for one in seeds[: params.random_runs]], "random"
        )
    rivals = {"the adversary": [worst], "the victim's servers, at random": targeted, "anybody's, at random": anybody}
    rivals = {name: costs for name, costs in rivals.items() if costs}
    every = [cost for costs in rivals.values() for cost in costs]
    gates = [
        gate(f"{name}: tokens lost or wrong", sum(c.lost for c in costs), 0, 0.0, "ours")
        for name, costs in rivals.items()
    ]
    if anybody:
        mean = statistics.mean(cost.took_s for cost in anybody)
        gates.append(gate("the adversary is worse than chance, seconds", worst.took_s, mean, 0.0, "ours", "at least"))
    return Outcome(
        tables=(rivals_table(params, calm, rivals), kills_table(calm, chosen)),
        plots=(plot(calm, rivals),),
        gates=tuple(gates),
        results=tuple(result_of(calm, name, costs) for name, costs in rivals.items()),
        notes=(
            f"The worst schedule that was found: {' '.join(texts_of(told))}",
            "The search is greedy, one kill after the other: a worse schedule may exist.",
        ),
        trace_hash=combined(cost.trace for cost in (calm, *every)),
        violations=tuple(line for cost in every for line in cost.violations),
        faults=texts_of(told),
    )


# -- plays -----------------------------------------------------------------------------------------------------------


def trial_of(params: Params, seed: int, schedule: Schedule) -> Trial:
    """One victim in a swarm of four stages, replicas in regions of their own."""
    spans = tuple((stage, stage + 1) for _ in range(params.replicas) for stage in range(STAGES))
    regions = tuple(f"region{index // STAGES}" for index in range(len(spans)))
    return Trial(
        spans, jobs_of(1, params.new_tokens, BEGIN_S), schedule, seed, regions=regions, near_s=params.near_ms / 1000,
        far_s=params.far_ms / 1000, setup=ONE_SHOT, heal_s=10 * MINUTE_S, pings=True,
    )  # fmt: skip


_undisturbed: dict[tuple[Params, int], Report] = {}


def cost_of(job: tuple[Params, int, Schedule]) -> Cost:
    """What comes of a schedule."""
    params, seed, schedule = job
    key = params, seed
    if key not in _undisturbed:
        _undisturbed[key] = play(replace(trial_of(params, seed, ()), heal_s=0.0))
    expected = _undisturbed[key]
    report = play(trial_of(params, seed, schedule), expected) if schedule else expected
    if not report.jobs:  # the run broke, which its violations tell
        return Cost(0.0, params.new_tokens, 0, report.violations, report.trace, expected)
    (job_report,) = report.jobs
    return Cost(
        took_s(job_report) if job_report.ended_s is not None else report.took_s,
        wrong_of(expected.jobs[0], job_report), len(job_report.errors), report.violations, report.trace, report,
    )  # fmt: skip


# -- the adversary ---------------------------------------------------------------------------------------------------


def search(params: Params, calm: Cost, how: Run) -> tuple[list[tuple[Moment, float]], list[Cost]]:
    """One kill after the other, each the worst of those tried; with what it added, and what came of it."""
    schedule: Schedule = ()
    chosen: list[tuple[Moment, float]] = []
    costs: list[Cost] = []
    best = calm
    for number in range(params.kills):
        found = [moment for moment in moments(params, best.report.jobs[0]) if allowed(params, schedule, moment.event)]
        if not found:
            break
        plays = how.map(
            cost_of, [(params, how.seed, in_order((*schedule, moment.event))) for moment in found], f"kill {number + 1}"
        )
        index = max(range(len(plays)), key=lambda index: plays[index].took_s)
        chosen.append((found[index], plays[index].took_s - best.took_s))
        schedule, best = in_order((*schedule, found[index].event)), plays[index]
        costs.append(best)
    return chosen, costs


def allowed(params: Params, schedule: Schedule, event: Event) -> bool:
    """Whether one more kill keeps to the limit in every minute, and kills nobody who is dead."""
    at = sorted([event.at_s, *(other.at_s for other in schedule)])
    limit = params.kills_per_minute
    crowded = any(later - sooner < MINUTE_S for sooner, later in zip(at, at[limit:], strict=False))
    dead = any(
        other.target == event.target and abs(other.at_s - event.at_s) < params.repair_s + 1.0 for other in schedule
    )
    return not crowded and not dead


def moments(params: Params, job: JobReport) -> list[Moment]:
    """When and whom to kill next, given what has happened so far."""
    times = [job.job.at_s, *job.times_s]
    found = []
    for number in range(params.positions):
        at = round((len(times) - 2) * (number + 0.5) / params.positions)
        found += on_chain(params, job, _between(times[at], times[at + 1]), "somewhere in the generation")
    found += on_chain(params, job, _between(times[-2], times[-1]), "at the last position")
    for recovery in job.recoveries:
        ends_s = recovery.at + recovery.seconds
        fresh = set(chain_at(job, ends_s + 10 * AFTER_S)) - set(chain_at(job, recovery.at - AFTER_S))
        for name in sorted(fresh):
            found.append(_moment(params, job, recovery.at + WITHIN * recovery.seconds, name, "during a replay"))
            found.append(_moment(params, job, ends_s + AFTER_S, name, "just after a re-route"))
    return found


def on_chain(params: Params, job: JobReport, at_s: float, why: str) -> list[Moment]:
    """A kill of each server that serves the victim at a moment."""
    return [_moment(params, job, at_s, name, why) for name in chain_at(job, at_s)]


def chain_at(job: JobReport, at_s: float) -> tuple[str, ...]:
    """Who serves the victim then: the chain of the next token that came."""
    names = job.chains[0][1]
    for since_s, chain in job.chains:
        if since_s <= at_s:
            names = chain
    return names


def _between(sooner: float, later: float) -> float:
    return sooner + WITHIN * (later - sooner)


def _moment(params: Params, job: JobReport, at_s: float, name: str, why: str) -> Moment:
    at_s = round(max(0.0, at_s), 6)
    position = sum(time <= at_s for time in job.times_s)
    return Moment(Event(at_s, Fault(params.fault), name, params.repair_s), why, position)


# -- chance ----------------------------------------------------------------------------------------------------------


def anybody_at_random(params: Params, seed: int, calm: Cost, draw: int) -> tuple[Params, int, Schedule]:
    """As many kills of any servers, at any moments of the undisturbed generation."""
    rng = random.Random(f"{draw}/anybody")
    names = [f"s{index}" for index in range(STAGES * params.replicas)]
    schedule: list[Event] = []
    while len(schedule) < params.kills:
        at_s = round(BEGIN_S + rng.uniform(0, calm.took_s), 6)
        event = Event(at_s, Fault(params.fault), rng.choice(names), params.repair_s)
        if all(other.target != event.target for other in schedule):
            schedule.append(event)
    return params, seed, in_order(schedule)


def targeted_at_random(job: tuple[Params, int, int]) -> Cost:
    """As many kills of servers that the victim uses, at random moments."""
    params, seed, draw = job
    rng = random.Random(f"{draw}/targeted")
    cost = cost_of((params, seed, ()))
    schedule: Schedule = ()
    shares = sorted(rng.random() for _ in range(params.kills))
    whole_s = cost.took_s
    for share in shares:
        victim = cost.report.jobs[0]
        found = [
            m for m in on_chain(params, victim, share * whole_s, "at random") if allowed(params, schedule, m.event)
        ]
        if found:
            schedule = in_order((*schedule, rng.choice(found).event))
            cost = cost_of((params, seed, schedule))
    return cost


# -- what it shows ---------------------------------------------------------------------------------------------------


def rivals_table(params: Params, calm: Cost, rivals: dict[str, list[Cost]]) -> Table:
    """The adversary beside chance."""
    rows: list[tuple[Cell, ...]] = [("nobody is killed", 1, 0, calm.took_s, calm.took_s, 1.0, 1.0, 0, 0)]
    for name, costs in rivals.items():
        took = [cost.took_s for cost in costs]
        mean, high = statistics.mean(took), percentile(took, 0.95) or 0.0
        rows.append(
            (
                name, len(costs), params.kills, mean, high, mean / calm.took_s, high / calm.took_s,
                sum(cost.errors for cost in costs), sum(cost.lost for cost in costs),
            )
        )  # fmt: skip
    columns = ("who is killed", "runs", "kills", "mean s", "p95 s", "slower", "p95", "errors", "lost")
    note = f"at most {params.kills_per_minute} kills a minute; who was killed is back after {params.repair_s:g} s"
    return Table("A strategic adversary", columns, tuple(rows), note)


def kills_table(calm: Cost, chosen: Sequence[tuple[Moment, float]]) -> Table:
    """The kills that were found, in the order in which they were found."""
    rows = tuple(
        (number, moment.event.target, moment.event.at_s, moment.position, moment.why, added)
        for number, (moment, added) in enumerate(chosen, 1)
    )
    columns = ("kill", "server", "at s", "position", "when", "costs s")
    return Table("Its kills", columns, rows, f"undisturbed, the generation takes {calm.took_s:.4g} s")


def plot(calm: Cost, rivals: dict[str, list[Cost]]) -> Plot:
    """How much slower each makes the victim."""
    names = tuple(rivals)
    means = tuple(statistics.mean(cost.took_s for cost in costs) / calm.took_s for costs in rivals.values())
    highs = tuple(max(cost.took_s for cost in costs) / calm.took_s for costs in rivals.values())
    series = (Series("mean", names, means), Series("worst", names, highs))
    return Plot("A strategic adversary", "who is killed", "times as long as undisturbed", series, "bar")


def result_of(calm: Cost, name: str, costs: Sequence[Cost]) -> dict[str, object]:
    """One rival as JSON."""
    took = [cost.took_s for cost in costs]
    return {
        "killed": name,
        "runs": len(costs),
        "mean_s": statistics.mean(took),
        "p95_s": percentile(took, 0.95),
        "undisturbed_s": calm.took_s,
        "slower": statistics.mean(took) / calm.took_s,
        "errors": sum(cost.errors for cost in costs),
        "lost": sum(cost.lost for cost in costs),
    }


KIND = Kind(
    "adversary",
    "kills exactly the servers of a victim, at the worst moments, against chance",
    Params,
    run,
    parallel=True,
)
