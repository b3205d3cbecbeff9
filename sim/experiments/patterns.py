"""Kind "patterns": servers fail at random, region by region, and in cascades, while users generate.

A swarm with the costs of the paper's failure table (BLOOM-7.1B on GTX 1080 Ti, four stages), every stage with replicas
in several regions; what fails comes back. Measured: how long users wait for a recovery, how much slower a generation is
than undisturbed, and tokens that are lost, of which there may be none.

Invariants: every run's failures follow from the seed and the run's number, and are told as a line that repeats them.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sim.disorder import Schedule, schedule_of, texts_of
from sim.disorder_processes import Churn, draw
from sim.experiments.disorder import jobs_of, percentile, places_of
from sim.handoffs import ONE_SHOT, STAGES
from sim.kinds import Kind, Run
from sim.results import Cell, Gate, Outcome, Plot, Series, Table, combined, gate
from sim.trial import JobReport, Report, Trial, play

RANDOM = Churn("poisson", ("crash",), between_s=60.0, repair_s=20.0)
CORRELATED = Churn("correlated", ("crash",), between_s=40.0, repair_s=15.0, spread_s=1.0)
CASCADING = Churn("cascading", ("crash",), between_s=60.0, repair_s=10.0, load=0.8, round_s=2.0)
SHARES = tuple(percent / 20 for percent in range(21))
"""At which the distribution of recovery times is plotted."""
SEEDS_APART = 1000
BEGIN_S = 5.0
"""When the first user begins: by then clients have measured the ways to their servers."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A way to fail, by name."""

    name: str
    churn: Churn


@dataclass(frozen=True, slots=True)
class Params:
    """The swarm, its users, and the patterns; patterns are compared on the same swarm."""

    replicas: int = field(default=3, metadata={"min": 1, "max": 16, "about": "of each stage, each in its own region"})
    users: int = field(default=3, metadata={"min": 1, "max": 32})
    new_tokens: int = field(default=200, metadata={"min": 8, "max": 2000})
    runs: int = field(default=12, metadata={"min": 1, "max": 1000, "about": "of each pattern"})
    near_ms: float = field(default=2.0, metadata={"min": 0.0, "about": "one way, within a region"})
    far_ms: float = field(default=25.0, metadata={"min": 0.0, "about": "one way, between regions"})
    patience_s: float = field(default=60.0, metadata={"min": 0.0, "about": "how long clients wait for lost blocks"})
    heal_s: float = field(default=120.0, metadata={"min": 0.0, "about": "when everything is healed"})
    patterns: tuple[Pattern, ...] = (
        Pattern("random", RANDOM),
        Pattern("correlated", CORRELATED),
        Pattern("cascading", CASCADING),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one run.

    Attributes:
        hit: events that began before the last user was done.
        recoveries_s: noticed to going on, as the client counts.
        stalls_s: how much longer than usual a user waited for the token that a recovery held up.
        lost: tokens that never came, or were wrong.
        slower: by how much generations took longer than undisturbed ones: 1 is as long.
    """

    pattern: str
    schedule: Schedule
    hit: int
    recoveries_s: tuple[float, ...]
    stalls_s: tuple[float, ...]
    errors: int
    lost: int
    slower: float
    violations: tuple[str, ...]
    trace: str


def run(params: Params, how: Run) -> Outcome:
    """Play all runs of all patterns."""
    if how.quick:
        params = replace(params, runs=min(params.runs, 2), new_tokens=min(params.new_tokens, 60), users=2)
    jobs = [
        (params, pattern, how.seed * SEEDS_APART + number, how.faults)
        for pattern in params.patterns
        for number in range(params.runs)
    ]
    if how.faults is not None:  # one run, exactly so
        jobs = [(params, Pattern("as told", RANDOM), how.seed, how.faults)]
    found = how.map(played, jobs, "patterns")
    groups: dict[str, list[Found]] = {}
    for one in found:
        groups.setdefault(one.pattern, []).append(one)
    broken = [one for one in found if one.violations]
    return Outcome(
        tables=(table(groups),),
        plots=(plot(groups),),
        gates=tuple(gates(groups)),
        results=tuple(result_of(name, group) for name, group in groups.items()),
        notes=tuple(
            f"{one.pattern}: {line} (run {' '.join(texts_of(one.schedule))})"
            for one in broken
            for line in one.violations
        ),
        trace_hash=combined(one.trace for one in found),
        violations=tuple(f"{one.pattern}: {line}" for one in broken for line in one.violations),
        faults=texts_of((broken or found)[0].schedule) if broken or how.faults is not None else (),
    )


def trial_of(params: Params, seed: int) -> Trial:
    """The swarm, undisturbed."""
    spans = tuple((stage, stage + 1) for _ in range(params.replicas) for stage in range(STAGES))
    regions = tuple(f"region{index // STAGES}" for index in range(len(spans)))
    return Trial(
        spans, jobs_of(params.users, params.new_tokens, BEGIN_S), (), seed, regions=regions,
        near_s=params.near_ms / 1000, far_s=params.far_ms / 1000, setup=ONE_SHOT, patience_s=params.patience_s,
        heal_s=params.heal_s, pings=True,
    )  # fmt: skip


def played(job: tuple[Params, Pattern, int, tuple[str, ...] | None]) -> Found:
    """One run, beside the same undisturbed."""
    params, pattern, seed, faults = job
    trial = trial_of(params, seed)
    expected = play(replace(trial, heal_s=0.0))
    schedule = schedule_of(faults or ()) if faults is not None else drawn(pattern, trial)
    report = play(replace(trial, schedule=schedule), expected)
    return measured(pattern.name, schedule, expected, report)


def drawn(pattern: Pattern, trial: Trial) -> Schedule:
    """What fails in one run."""
    return draw(pattern.churn, places_of(trial), trial.heal_s, random.Random(f"{trial.seed}/{pattern.name}"))


def measured(name: str, schedule: Schedule, expected: Report, report: Report) -> Found:
    """What a run shows."""
    lost = sum(wrong_of(mine, job) for mine, job in zip(expected.jobs, report.jobs, strict=False))
    paces = [took_s(job) / took_s(mine) for mine, job in zip(expected.jobs, report.jobs, strict=False) if job.ended_s]
    return Found(
        name,
        schedule,
        sum(event.at_s < report.took_s for event in schedule),
        tuple(recovery.seconds for recovery in report.recoveries),
        tuple(stall for job in report.jobs for stall in stalls(job)),
        sum(len(job.errors) for job in report.jobs),
        lost,
        statistics.mean(paces) if paces else 0.0,
        report.violations,
        report.trace,
    )


def wrong_of(expected: JobReport, job: JobReport) -> int:
    """Tokens that never came, or are others than undisturbed."""
    right = sum(mine == theirs for mine, theirs in zip(expected.tokens, job.tokens, strict=False))
    return len(expected.tokens) - right


def took_s(job: JobReport) -> float:
    """From the beginning of a generation to its last token."""
    return (job.ended_s or 0.0) - job.job.at_s


def stalls(job: JobReport) -> list[float]:
    """How much longer than usual its user waited, whenever that was for a recovery."""
    gaps = list(itertools.pairwise([job.job.at_s, *job.times_s]))
    usual = statistics.median(later - sooner for sooner, later in gaps) if gaps else 0.0
    return [
        max(0.0, later - sooner - usual)
        for sooner, later in gaps
        if any(sooner <= recovery.at < later for recovery in job.recoveries)
    ]


def table(groups: dict[str, list[Found]]) -> Table:
    """The patterns beside each other."""
    rows = tuple(row_of(name, group) for name, group in groups.items())
    columns = (
        "pattern", "runs", "failures", "recoveries", "took s", "p95", "wait s", "p95", "longest", "slower", "errors",
        "lost",
    )  # fmt: skip
    note = (
        "took: median from noticing to going on, as the client counts; wait: median beyond the usual time between "
        "tokens, which contains noticing, and waiting until anybody serves the blocks again; slower: than undisturbed, "
        "mean; errors: told to users, who then go on from where they stopped; lost: tokens"
    )
    return Table("Failure patterns", columns, rows, note)


def row_of(name: str, group: Sequence[Found]) -> tuple[Cell, ...]:
    """One pattern."""
    recoveries = [seconds for one in group for seconds in one.recoveries_s]
    waits = [seconds for one in group for seconds in one.stalls_s]
    slower = [one.slower for one in group if one.slower]
    return (
        name, len(group), sum(one.hit for one in group), len(recoveries), percentile(recoveries, 0.5),
        percentile(recoveries, 0.95), percentile(waits, 0.5), percentile(waits, 0.95), max(waits, default=None),
        statistics.mean(slower) if slower else None, sum(one.errors for one in group), sum(one.lost for one in group),
    )  # fmt: skip


def gates(groups: dict[str, list[Found]]) -> list[Gate]:
    """No token may be lost, and something has to have happened for that to mean anything."""
    made = []
    for name, group in groups.items():
        made.append(gate(f"{name}: tokens lost or wrong", sum(one.lost for one in group), 0, 0.0, "ours"))
        made.append(gate(f"{name}: promises broken", sum(len(one.violations) for one in group), 0, 0.0, "ours"))
    return made


def plot(groups: dict[str, list[Found]]) -> Plot:
    """How long users wait, as a distribution."""
    series = []
    for name, group in groups.items():
        waits = [seconds for one in group for seconds in one.stalls_s]
        if waits:
            x = tuple(float(percentile(waits, share) or 0.0) for share in SHARES)
            series.append(Series(name, x, tuple(100 * share for share in SHARES)))
    return Plot("Waiting for a recovery", "seconds beyond the usual", "% of recoveries", tuple(series), "step")


def result_of(name: str, group: Sequence[Found]) -> dict[str, object]:
    """A pattern as JSON."""
    keys = (
        "pattern", "runs", "failures", "recoveries", "recovery_median_s", "recovery_p95_s", "wait_median_s",
        "wait_p95_s", "wait_max_s", "slower", "errors", "lost",
    )  # fmt: skip
    return dict(zip(keys, row_of(name, group), strict=True))


KIND = Kind(
    "patterns", "random, regional and cascading failures: recovery time, and tokens lost", Params, run, parallel=True
)
