"""How to hurt one user most with few kills: plays of a victim's generation, and the search for the worst moments.

Whoever searches knows the victim's chain at every moment. Two strategies and chance: one kill after the other, each the
worst of many that were tried; and hunting one stage, each kill falling on whoever took over, as soon as it did.

Invariants: every play follows from its schedule; the search is no proof: a worse schedule may exist.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Literal

from sim.disorder import Event, Fault, Schedule, in_order
from sim.experiments.disorder import jobs_of
from sim.experiments.patterns import BEGIN_S, took_s, wrong_of
from sim.handoffs import ONE_SHOT, STAGES
from sim.kinds import Run
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
    """What a schedule of kills does to the victim.

    Attributes:
        gone_s: so long some blocks had no server at all, and the victim could but wait.
    """

    took_s: float
    gone_s: float
    lost: int
    errors: int
    violations: tuple[str, ...]
    trace: str
    report: Report = field(repr=False, compare=False)


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
        return Cost(0.0, 0.0, params.new_tokens, 0, report.violations, report.trace, expected)
    (job_report,) = report.jobs
    return Cost(
        took_s(job_report) if job_report.ended_s is not None else report.took_s,
        gone_s(params, schedule, report.took_s),
        wrong_of(expected.jobs[0], job_report), len(job_report.errors), report.violations, report.trace,
        report,
    )  # fmt: skip


def gone_s(params: Params, schedule: Schedule, until_s: float) -> float:
    """How long some stage has no server at all."""
    borders = sorted({until_s, *(min(until_s, edge) for event in schedule for edge in (event.at_s, event.ends_s))})
    gone = 0.0
    for start_s, end_s in itertools.pairwise(borders):
        dead = {int(event.target[1:]) for event in schedule if event.at_s <= start_s and event.ends_s >= end_s}
        stages = [sum(index % STAGES == stage for index in dead) for stage in range(STAGES)]
        gone += (end_s - start_s) * (max(stages) >= params.replicas)
    return gone


# -- the adversary ---------------------------------------------------------------------------------------------------


Path = tuple[tuple[Moment, Cost], ...]
"""Kills in the order in which they were chosen, each with what came of it and of those before."""


def schedule_of_path(path: Path) -> Schedule:
    """Its kills."""
    return in_order(moment.event for moment, _ in path)


def one_by_one(params: Params, calm: Cost, how: Run) -> Path:
    """One kill after the other, each the worst of those tried."""
    path: Path = ()
    for number in range(params.kills):
        schedule, best = schedule_of_path(path), path[-1][1] if path else calm
        found = [moment for moment in moments(params, best.report.jobs[0]) if allowed(params, schedule, moment.event)]
        if not found:
            break
        jobs = [(params, how.seed, in_order((*schedule, moment.event))) for moment in found]
        plays = how.map(cost_of, jobs, f"kill {number + 1}")
        index = max(range(len(plays)), key=lambda index: plays[index].took_s)
        path = (*path, (found[index], plays[index]))
    return path


def stage_hunts(params: Params, seed: int) -> list[tuple[Params, int, int, float]]:
    """Hunts to try: each stage, from each position on."""
    shares = [(number + 0.5) / params.positions for number in range(params.positions)]
    return [(params, seed, stage, share) for stage in range(STAGES) for share in shares]


def hunted(job: tuple[Params, int, int, float]) -> Path:
    """Kill the server of one stage, then whoever takes over, as soon as the victim has moved there."""
    params, seed, stage, share = job
    cost = cost_of((params, seed, ()))
    at_s = BEGIN_S + share * cost.took_s
    path: Path = ()
    for _ in range(params.kills):
        victim = cost.report.jobs[0]
        names = chain_at(victim, at_s)
        if stage >= len(names):
            break
        why = "hunting a stage" if path else "somewhere in the generation"
        moment = _moment(params, victim, at_s, names[stage], why)
        if not allowed(params, schedule_of_path(path), moment.event):
            break
        cost = cost_of((params, seed, in_order((*schedule_of_path(path), moment.event))))
        path = (*path, (moment, cost))
        later = [one.at + one.seconds for one in cost.report.jobs[0].recoveries if one.at + one.seconds > at_s]
        if not later:
            break
        at_s = min(later) + AFTER_S
    return path


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
        fresh = set(chain_at(job, ends_s)) - set(chain_before(job, recovery.at))
        for name in sorted(fresh):
            found.append(_moment(params, job, recovery.at + WITHIN * recovery.seconds, name, "during a replay"))
            found.append(_moment(params, job, ends_s + AFTER_S, name, "just after a re-route"))
    return found


def on_chain(params: Params, job: JobReport, at_s: float, why: str) -> list[Moment]:
    """A kill of each server that serves the victim at a moment."""
    return [_moment(params, job, at_s, name, why) for name in chain_at(job, at_s)]


def chain_at(job: JobReport, at_s: float) -> tuple[str, ...]:
    """Who serves the victim then: the chain that its next token comes through."""
    return _chain_of(job, next((time for time in job.times_s if time >= at_s), job.times_s[-1]))


def chain_before(job: JobReport, at_s: float) -> tuple[str, ...]:
    """The chain that its last token came through."""
    return _chain_of(job, max((time for time in job.times_s if time < at_s), default=job.times_s[0]))


def _chain_of(job: JobReport, token_s: float) -> tuple[str, ...]:
    return next(names for since_s, names in reversed(job.chains) if since_s <= token_s)


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


def chased_at_random(job: tuple[Params, int, int]) -> Path:
    """As many kills of servers that the victim uses, at random moments."""
    params, seed, draw = job
    rng = random.Random(f"{draw}/chased")
    cost = cost_of((params, seed, ()))
    path: Path = ()
    for at_s in sorted(BEGIN_S + cost.took_s * rng.random() for _ in range(params.kills)):
        victim = path[-1][1].report.jobs[0] if path else cost.report.jobs[0]
        tried = on_chain(params, victim, at_s, "at random")
        found = [moment for moment in tried if allowed(params, schedule_of_path(path), moment.event)]
        if found:
            moment = rng.choice(found)
            path = (*path, (moment, cost_of((params, seed, in_order((*schedule_of_path(path), moment.event))))))
    return path
