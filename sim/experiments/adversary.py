"""Kind "adversary": somebody kills exactly the servers that a victim uses, at the worst moments of its generation.

The adversary knows the victim's chain at every moment, may kill so many servers, no more than a few a minute, and
searches (``sim.hunting``). Beside it: as many kills of the victim's servers at random moments, and as many of
anybody's. What was killed comes back after a while.

Invariants: every play follows from its schedule, which is told; the search is no proof: a worse schedule may exist.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from sim.disorder import Schedule, schedule_of, texts_of
from sim.experiments.disorder import percentile
from sim.hunting import (
    SEEDS_APART,
    Cost,
    Params,
    Path,
    anybody_at_random,
    chased_at_random,
    cost_of,
    hunted,
    one_by_one,
    schedule_of_path,
    stage_hunts,
)
from sim.kinds import Kind, Run
from sim.results import Cell, Outcome, Plot, Series, Table, combined, gate

ADVERSARY, CHASED, ANYBODY = "the adversary", "the victim's servers, at random", "anybody's, at random"


def run(params: Params, how: Run) -> Outcome:
    """Search, then compare."""
    if how.quick:
        params = replace(
            params, new_tokens=min(params.new_tokens, 24), kills=min(params.kills, 2), positions=1, random_runs=2,
            targeted_runs=1,
        )  # fmt: skip
    calm = cost_of((params, how.seed, ()))
    if how.faults is not None:
        told = schedule_of(how.faults)
        return told_of(params, calm, (), told, {ADVERSARY: [cost_of((params, how.seed, told))]})
    path, rivals = compared(params, calm, how)
    return told_of(params, calm, path, schedule_of_path(path), rivals)


def compared(params: Params, calm: Cost, how: Run) -> tuple[Path, dict[str, list[Cost]]]:
    """The worst kills that were found, by whatever strategy, and all rivals."""
    seeds = [how.seed * SEEDS_APART + number for number in range(max(params.random_runs, params.targeted_runs))]
    draws = [anybody_at_random(params, how.seed, calm, one) for one in seeds[: params.random_runs]]
    anybody = how.map(cost_of, draws, "anybody's servers")
    chases = [(params, how.seed, one) for one in seeds[: params.targeted_runs]]
    chased = [path for path in how.map(chased_at_random, chases, "the victim's servers") if path]
    hunts = [path for path in how.map(hunted, stage_hunts(params, how.seed), "hunts") if path]
    paths = [path for path in (one_by_one(params, calm, how), *hunts, *chased) if path]
    worst = max(paths, key=lambda path: path[-1][1].took_s)
    rivals = {ADVERSARY: [worst[-1][1]], CHASED: [path[-1][1] for path in chased], ANYBODY: anybody}
    return worst, {name: costs for name, costs in rivals.items() if costs}


def told_of(params: Params, calm: Cost, path: Path, told: Schedule, rivals: dict[str, list[Cost]]) -> Outcome:
    """Tables, plot and gates."""
    every = [cost for costs in rivals.values() for cost in costs]
    gates = [
        gate(f"{name}: tokens lost or wrong", sum(cost.lost for cost in costs), 0, 0.0, "ours")
        for name, costs in rivals.items()
    ]
    if ANYBODY in rivals:
        mean = statistics.mean(cost.took_s for cost in rivals[ANYBODY])
        worst_s = rivals[ADVERSARY][0].took_s
        gates.append(gate("the adversary is worse than chance, seconds", worst_s, mean, 0.0, "ours", "at least"))
    return Outcome(
        tables=(rivals_table(params, calm, rivals), kills_table(calm, path)),
        plots=(plot(calm, rivals),),
        gates=tuple(gates),
        results=tuple(result_of(calm, name, costs) for name, costs in rivals.items()),
        notes=(
            f"The worst schedule that was found: {' '.join(texts_of(told))}",
            "Found by trying: one kill after the other, hunting a stage, and chance; a worse schedule may exist.",
            "While some blocks have no server at all, a victim can but wait until one is back.",
        ),
        trace_hash=combined(cost.trace for cost in (calm, *every)),
        violations=tuple(line for cost in every for line in cost.violations),
        faults=texts_of(told),
    )


def rivals_table(params: Params, calm: Cost, rivals: dict[str, list[Cost]]) -> Table:
    """The adversary beside chance."""
    rows: list[tuple[Cell, ...]] = [("nobody is killed", 1, 0, calm.took_s, calm.took_s, 1.0, 1.0, 0.0, 0, 0)]
    for name, costs in rivals.items():
        took = [cost.took_s for cost in costs]
        mean, high = statistics.mean(took), percentile(took, 0.95) or 0.0
        rows.append(
            (
                name, len(costs), params.kills, mean, high, mean / calm.took_s, high / calm.took_s,
                statistics.mean(cost.gone_s for cost in costs), sum(cost.errors for cost in costs),
                sum(cost.lost for cost in costs),
            )
        )  # fmt: skip
    columns = ("who is killed", "runs", "kills", "mean s", "p95 s", "slower", "p95", "gone s", "errors", "lost")
    note = (
        f"at most {params.kills_per_minute} kills a minute; who was killed is back after {params.repair_s:g} s; "
        "gone: so long some blocks had no server"
    )
    return Table("A strategic adversary", columns, tuple(rows), note)


def kills_table(calm: Cost, path: Path) -> Table:
    """The kills that were found, in the order in which they were chosen."""
    rows = []
    before_s = calm.took_s
    for number, (moment, cost) in enumerate(path, 1):
        event = moment.event
        rows.append((number, event.target, event.at_s, moment.position, moment.why, cost.took_s - before_s))
        before_s = cost.took_s
    columns = ("kill", "server", "at s", "position", "when", "costs s")
    return Table("Its kills", columns, tuple(rows), f"undisturbed, the generation takes {calm.took_s:.4g} s")


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
