"""What came of a play, judged and put into tables and plots.

Safety: whatever came is what the model in one piece gives. Liveness: when all was healed, everybody got through. A
wrong token is told as a violation, unless a server of its chain computed wrongly on purpose at that time: nothing on
the wire can show that, so such jobs are counted, and told as what cannot be seen yet.

Invariants: pure; nothing is judged that cannot be told, and what was not judged is counted as such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from sim.disorder import Fault, texts_of
from sim.expected import Expected
from sim.jobs import Job, right
from sim.observe import Sample, rates
from sim.results import Cell, Outcome, Plot, Series, Table
from sim.scene import Played, Script
from sim.shapes import ShapeModel

JOBS_TOLD = 500
"""Longer lists of jobs are cut; sums are of all."""


@dataclass(frozen=True, slots=True)
class Checks:
    """What has to hold; a table of a scenario.

    Attributes:
        tokens: hold every token against the model in one piece (not for shapes: they have no tokens of their own).
        errors_max: jobs that may fail or be given up while things go wrong.
        settle_s: within so long after everything was healed all jobs are over, and every client gets a new one done.
        leaks: nothing is left on servers that nobody uses.
    """

    tokens: bool = True
    errors_max: int = field(default=0, metadata={"min": 0})
    settle_s: float = field(default=300.0, metadata={"min": 0.0, "about": "0: nobody waits for that"})
    leaks: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """A job, judged.

    Attributes:
        word: ``right``, ``wrong``, ``misled`` (wrong, with a server in its chain that lied at the time), or empty:
            not judged, or nothing came.
    """

    job: Job
    word: str


def judge(played: Played, script: Script, checks: Checks) -> list[Verdict]:
    """Hold every job against the model in one piece."""
    if not checks.tokens or isinstance(script.blocks, ShapeModel):
        return [Verdict(job, "") for job in played.jobs]
    expected = Expected(script.blocks)
    words = {True: "right", False: "wrong", None: ""}
    return [
        Verdict(job, "misled" if word == "wrong" and _lied_to(job, played, script) else word)
        for job in played.jobs
        for word in (words[right(job, expected)],)
    ]


def _lied_to(job: Job, played: Played, script: Script) -> bool:
    """Whether a server of its chain computed wrongly while it ran."""
    liars = [event for event in script.schedule if event.kind is Fault.WRONG]
    ended_s = math.inf if job.ended_s is None else job.ended_s
    return any(
        (not job.servers or played.nodes.by_name[event.target].peer in job.servers)  # a forward does not tell its chain
        and job.began_s < played.origin_s + event.ends_s
        and played.origin_s + event.at_s < ended_s
        for event in liars
    )


def violations(played: Played, verdicts: Sequence[Verdict], checks: Checks) -> tuple[str, ...]:
    """Promises that were broken, a line each."""
    found = [f"{verdict.job}: wrong tokens, silently" for verdict in verdicts if verdict.word == "wrong"]
    errors = [job for job in played.jobs if job.state in ("failed", "late")]
    if len(errors) > checks.errors_max:
        told = "; ".join(f"{job}: {job.error}" for job in errors[:3])
        found.append(f"{len(errors)} jobs failed, allowed are {checks.errors_max}: {told}")
    return (*found, *played.stuck, *played.findings)


def outcome_of(played: Played, script: Script, checks: Checks) -> Outcome:
    """Everything that a reader wants to know."""
    verdicts = judge(played, script, checks)
    return Outcome(
        tables=(workloads(verdicts, script), servers(played, script), traffic(played, script), jobs(verdicts, played)),
        plots=tuple(plots(played.samples)),
        gates=(),
        results=tuple(summary(name, of, script) for name, of in _by_workload(verdicts, script)),
        notes=tuple(notes(verdicts, script, checks)),
        trace_hash=played.trace_hash,
        violations=violations(played, verdicts, checks),
        faults=texts_of(script.schedule),
    )


def notes(verdicts: Sequence[Verdict], script: Script, checks: Checks) -> list[str]:
    """What a reader must know to read the tables."""
    found = []
    misled = sum(verdict.word == "misled" for verdict in verdicts)
    if misled:
        found.append(
            f"{misled} jobs got wrong tokens, silently, from servers that compute wrongly on purpose: their answers "
            "are well-formed, so nothing on the wire can show it. Only an audit could; there is none yet."
        )
    unjudged = sum(not verdict.word and verdict.job.tokens_done > 0 for verdict in verdicts)
    if unjudged:
        why = "shapes have no tokens of their own" if isinstance(script.blocks, ShapeModel) else "nobody can tell"
        found.append(
            f"The tokens of {unjudged} jobs were not judged: {why if checks.tokens else 'checks.tokens is off'}."
        )
    return found


# -- tables ------------------------------------------------------------------------------------------------------------

Rows = list[tuple[str, list[Verdict]]]


def _by_workload(verdicts: Sequence[Verdict], script: Script) -> Rows:
    names = [workload.name for workload in script.workloads]
    return [(name, [verdict for verdict in verdicts if verdict.job.workload == name]) for name in names]


def summary(name: str, verdicts: Sequence[Verdict], script: Script) -> dict[str, Any]:
    """One workload in figures."""
    all_jobs = [verdict.job for verdict in verdicts]
    first = [job.first_token_s for job in all_jobs if job.first_token_s is not None]
    speeds = [job.steps_per_s for job in all_jobs if job.steps_per_s is not None]
    states = {state: sum(job.state == state for job in all_jobs) for state in ("done", "failed", "late", "cut")}
    words = {word: sum(verdict.word == word for verdict in verdicts) for word in ("right", "wrong", "misled")}
    return {
        "workload": name, "jobs": len(all_jobs), **states, **words,
        "tokens": sum(job.tokens_done for job in all_jobs),
        "tokens_per_s": sum(job.tokens_done for job in all_jobs) / script.seconds,
        "first_token_s": median(first) if first else None,
        "first_token_p95_s": quantile(first, 0.95),
        "steps_per_s": median(speeds) if speeds else None,
        "recoveries": sum(job.recoveries for job in all_jobs),
    }  # fmt: skip


def workloads(verdicts: Sequence[Verdict], script: Script) -> Table:
    """One line per workload."""
    lines = [summary(name, of, script) for name, of in _by_workload(verdicts, script)]
    columns = {
        "workload": "workload", "jobs": "jobs", "done": "done", "failed": "failed", "late": "given up", "cut": "cut",
        "right": "right", "wrong": "wrong", "misled": "misled", "tokens": "tokens", "tokens_per_s": "tokens/s",
        "first_token_s": "first token s", "first_token_p95_s": "95 %", "steps_per_s": "steps/s",
        "recoveries": "recoveries",
    }  # fmt: skip
    rows = tuple(tuple(rounded(line[key]) for key in columns) for line in lines)
    note = "first token and steps/s: medians over jobs. cut: the job's client was gone."
    return Table("Jobs", tuple(columns.values()), rows, note)


def servers(played: Played, script: Script) -> Table:
    """One line per server."""
    rows = []
    for node in played.nodes.of("server"):
        served = played.observer.served_s[node.name] / script.seconds
        blocks = str(played.observer.spans.get(node.name, ""))
        passes, known = played.observer.passes_of(node.name), played.observer.known[node.name]
        error = str(node.process.error or "")
        rows.append((node.name, blocks, node.lives, rounded(min(1.0, served)), known, passes, error))
    note = "blocks: those that it served last. serving: share of the time. known: clients that list it at the end."
    return Table("Servers", ("server", "blocks", "lives", "serving", "known", "passes", "error"), tuple(rows), note)


def traffic(played: Played, script: Script) -> Table:
    """One line per group of hosts."""
    meter, rows = played.meter, []
    for group in script.groups:
        sums = [
            sum(of[name] for name in group.names) for of in (meter.messages, meter.sent_bytes, meter.received_bytes)
        ]
        messages, sent, received = sums
        rows.append((group.name, group.count, messages, rounded(sent / 1e6), rounded(received / 1e6)))
    columns = ("hosts", "count", "messages", "sent MB", "received MB")
    note = "What programs hand to their streams, from the first start to the end; headers of the network come on top."
    return Table("Traffic", columns, tuple(rows), note)


def jobs(verdicts: Sequence[Verdict], played: Played) -> Table:
    """One line per job."""
    rows = []
    for verdict in verdicts[:JOBS_TOLD]:
        job = verdict.job
        began_s = rounded(job.began_s - played.origin_s)
        took_s = None if job.ended_s is None else rounded(job.ended_s - job.began_s)
        rows.append((
            str(job), job.client, began_s, took_s, job.state, verdict.word, job.tokens_done, rounded(job.first_token_s),
            rounded(job.steps_per_s), job.recoveries, job.error,
        ))  # fmt: skip
    columns = (
        "job", "client", "at s", "took s", "state", "tokens are", "tokens", "first token s", "steps/s", "recoveries",
        "error",
    )  # fmt: skip
    note = f"The first {JOBS_TOLD} of {len(verdicts)}." if len(verdicts) > JOBS_TOLD else ""
    return Table("Every job", columns, tuple(rows), note)


def plots(samples: Sequence[Sample]) -> Iterable[Plot]:
    """What happened over virtual time."""
    x = tuple(sample.at_s for sample in samples)

    def series(name: str, of: Callable[[Sample], float]) -> Series:
        return Series(name, x, tuple(of(sample) for sample in samples))

    tokens = Series("tokens/s", x, tuple(rates(samples, lambda sample: sample.tokens)))
    yield Plot("Throughput", "virtual seconds", "tokens/s", (tokens,))
    serving, weakest = series("that serve", lambda s: s.servers), series("of the weakest block", lambda s: s.replicas)
    yield Plot("Coverage", "virtual seconds", "servers", (serving, weakest), "step")
    yield Plot("Jobs", "virtual seconds", "jobs under way", (series("jobs", lambda s: s.running),), "step")


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else None


def rounded(value: float | str | None) -> Cell:
    """Four digits are enough for a table."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
