"""Kind "disorder": users generate while everything goes wrong that processes draw; safety first, then liveness.

Invariants: what goes wrong follows from the seed, or is named by ``faults``; promises that are broken become
violations, which ``sim.shrink`` can ask for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from p2pllm.types import Span
from sim.disorder import Schedule, in_order, schedule_of, texts_of
from sim.disorder_processes import Churn, Place, draw
from sim.kinds import Kind, Run
from sim.results import Outcome, Plot, Series, Table, combined, gate
from sim.trial import Job, JobReport, Report, Trial, play


@dataclass(frozen=True, slots=True)
class Params:
    """A swarm of the toy, its users, and what goes wrong; by default what the product has to survive."""

    stages: int = field(default=3, metadata={"min": 1, "max": 32, "about": "servers of a chain"})
    replicas: int = field(default=3, metadata={"min": 1, "max": 32, "about": "of each stage, each in its own region"})
    users: int = field(default=3, metadata={"min": 1, "max": 64, "about": "each generates once, a second apart"})
    new_tokens: int = field(default=80, metadata={"min": 1, "max": 1000})
    pass_ms: float = field(default=50.0, metadata={"min": 0.0, "max": 10_000.0, "about": "of every pass"})
    push: Literal["auto", "on", "off"] = "auto"
    activations: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    near_ms: float = field(default=5.0, metadata={"min": 0.0, "about": "one way, within a region"})
    far_ms: float = field(default=40.0, metadata={"min": 0.0, "about": "one way, between regions"})
    patience_s: float = field(default=60.0, metadata={"min": 0.0, "about": "how long clients wait for lost blocks"})
    heal_s: float = field(default=60.0, metadata={"min": 0.0, "about": "when everything is healed"})
    bound_s: float = field(default=120.0, metadata={"min": 1.0, "about": "so long after that, every job has ended"})
    history_kib: float = field(default=1.0, metadata={"min": 0.0, "about": "of a client in memory; more goes to disk"})
    faults: tuple[str, ...] = field(
        default=(), metadata={"about": "exactly these instead of what is drawn, such as crash@12.5=s3+20"}
    )
    churn: tuple[Churn, ...] = (
        Churn("poisson", ("crash", "hang", "slow", "lag", "flap", "flaky"), between_s=40.0, repair_s=5.0),
        Churn("poisson", ("restart", "stale", "clock_jump", "corrupt"), between_s=60.0, repair_s=5.0),
        Churn("correlated", ("crash",), between_s=120.0, repair_s=5.0),
    )


def run(params: Params, how: Run) -> Outcome:
    """Play the undisturbed jobs, then the disturbed ones."""
    trial = trial_of(params, how)
    how.progress("undisturbed", 0, 2)
    expected = play(replace(trial, schedule=(), heal_s=0.0))
    how.progress("disturbed", 1, 2)
    report = play(trial, expected)
    how.progress("disturbed", 2, 2)
    lost = sum(job.lost for job in report.jobs)
    return Outcome(
        tables=(jobs_table(report), recoveries_table(report)),
        plots=(progress_plot(report),),
        gates=(
            gate("tokens lost", lost, 0, 0.0, "ours"),
            gate("promises broken", len(report.violations), 0, 0.0, "ours"),
        ),
        results=tuple(result_of(job) for job in report.jobs),
        notes=(f"What happened: {' '.join(texts_of(trial.schedule)) or 'nothing'}",),
        trace_hash=combined([expected.trace, report.trace]),
        violations=report.violations,
        faults=texts_of(trial.schedule),
    )


def trial_of(params: Params, how: Run) -> Trial:
    """The trial that ``params`` describe."""
    spans = tuple((stage, stage + 1) for _ in range(params.replicas) for stage in range(params.stages))
    regions = tuple(f"region{index // params.stages}" for index in range(len(spans)))
    tokens = min(params.new_tokens, 40) if how.quick else params.new_tokens
    trial = Trial(
        spans, jobs_of(params.users, tokens), (), how.seed, params.push, params.activations, regions,
        params.near_ms / 1000, params.far_ms / 1000, None, params.pass_ms / 1000, params.patience_s, params.heal_s,
        params.bound_s, int(1024 * params.history_kib),
    )  # fmt: skip
    return replace(trial, schedule=schedule(params, trial, how))


def jobs_of(users: int, tokens: int, begin_s: float = 0.0) -> tuple[Job, ...]:
    """One prompt for each user, no two alike, a second apart."""
    return tuple(Job(f"user{user}", (11 + user, 7, 5, 3, 2), tokens, begin_s + user) for user in range(users))


def places_of(trial: Trial) -> list[Place]:
    """The servers of a trial, as processes see them."""
    regions = trial.regions or ("",) * len(trial.spans)
    return [
        Place(f"s{index}", region, Span(*span))
        for index, (region, span) in enumerate(zip(regions, trial.spans, strict=True))
    ]


def schedule(params: Params, trial: Trial, how: Run) -> Schedule:
    """What goes wrong: named by the user, named by the scenario, or drawn."""
    if how.faults is not None or params.faults:
        return schedule_of(params.faults if how.faults is None else how.faults)
    events: list[Schedule] = [
        draw(churn, places_of(trial), trial.heal_s, random.Random(f"{how.seed}/churn/{number}"))
        for number, churn in enumerate(params.churn)
    ]
    return in_order(event for part in events for event in part)


def jobs_table(report: Report) -> Table:
    """What came of every job."""
    columns = ("job", "tokens", "of", "began s", "ended s", "recoveries", "errors told")
    rows = tuple(
        (
            job.job.name, len(job.tokens), job.job.new_tokens, job.job.at_s, job.ended_s, len(job.recoveries),
            len(job.errors),
        )
        for job in report.jobs
    )  # fmt: skip
    return Table("Jobs", columns, rows, "after an error its user tries again, from where it stopped")


def recoveries_table(report: Report) -> Table:
    """Every failure that was survived."""
    rows = tuple(
        (job.job.name, recovery.at, str(recovery.span), recovery.seconds, recovery.replayed, recovery.cause)
        for job in report.jobs
        for recovery in job.recoveries
    )
    return Table("Recoveries", ("job", "at s", "blocks", "took s", "tokens replayed", "cause"), rows)


def progress_plot(report: Report) -> Plot:
    """How the tokens came."""
    series = tuple(
        Series(job.job.name, tuple(job.times_s), tuple(float(i + 1) for i in range(len(job.times_s))))
        for job in report.jobs
    )
    return Plot("Tokens", "virtual seconds", "tokens", series, "step")


def result_of(job: JobReport) -> dict[str, object]:
    """A job as JSON."""
    return {
        "job": job.job.name,
        "tokens": list(job.tokens),
        "lost": job.lost,
        "ended_s": job.ended_s,
        "recoveries": len(job.recoveries),
        "errors": [text for _, text in job.errors],
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least ``share`` of them do not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


KIND = Kind("disorder", "users generate while hosts and links fail: nothing is lost, and everybody ends", Params, run)
