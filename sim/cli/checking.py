"""``python -m sim check``: many seeds, each twice; for every failure the one line that repeats it."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import trio

from sim import catalog, check
from sim.check import Task, Verdict
from sim.cli.progress import bar
from sim.kinds import Progress, Run
from sim.play import command, stack_of
from sim.store import line

DETAILED = 3
"""So many failures are shrunk or compared event by event; the others are named."""


def run(args: argparse.Namespace) -> int:
    """Check; 1 when a seed failed."""
    scenario = catalog.scenario(args.scenario)
    how = Run(stack=stack_of(scenario, args.stack), quick=args.quick, processes=1)
    task = Task(scenario, how)
    found: dict[int, Verdict] = {}
    with bar(scenario.name) as progress:

        def hear(verdict: Verdict) -> None:
            found[verdict.seed] = verdict
            failed = sum(not one.ok for one in found.values())
            progress(f"{failed} failed" if failed else "", len(found), len(args.seeds))

        trio.run(check.verdicts, task, list(args.seeds), hear)
        verdicts = [found[seed] for seed in args.seeds]
        failures = [one for one in verdicts if not one.ok]
        told = [_told(task, one, args.shrink and i < DETAILED, progress) for i, one in enumerate(failures)]
    if args.json:
        _print_json(task, verdicts, told)
    else:
        for one in told:
            print("\n".join(one.lines()))
        print(_summary(task, verdicts))
    return 1 if failures else 0


class _Failure:
    """One failed seed, as it is printed."""

    def __init__(self, verdict: Verdict, repeat: str, shrunk: str = "", difference: str = "") -> None:
        self.verdict = verdict
        self.repeat = repeat
        self.shrunk = shrunk
        self.difference = difference

    def lines(self) -> list[str]:
        verdict = self.verdict
        lines = [f"seed {verdict.seed} fails: {problem}" for problem in verdict.problems[:5]]
        if not verdict.same:
            hashes = f"{verdict.one.trace_hash or 'none'} and {verdict.other.trace_hash or 'none'}"
            lines.append(f"seed {verdict.seed} is not deterministic: traces {hashes}")
            lines.append(f"  first difference: {self.difference}")
        lines.append(f"  repeat: {self.repeat}")
        return lines + ([f"  shrunk: {self.shrunk}"] if self.shrunk else [])


def _told(task: Task, verdict: Verdict, detailed: bool, progress: Progress) -> _Failure:
    how = replace(task.how, seed=verdict.seed)
    if not verdict.same:
        where = _difference(task, verdict.seed) if detailed else "not looked for"
        again = command(task.scenario, how).replace(" run ", " check ", 1)
        return _Failure(verdict, again.replace(f"--seed {how.seed}", f"--seeds {how.seed}"), difference=where)
    repeat = command(task.scenario, how)
    small = check.shrunk(task, verdict, progress) if detailed else verdict.one.faults
    if small == verdict.one.faults:
        return _Failure(verdict, repeat)
    return _Failure(verdict, repeat, shrunk=command(task.scenario, replace(how, faults=small)))


def _difference(task: Task, seed: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        found = trio.run(check.difference, task, seed, Path(folder))
    return str(found) if found is not None else "none in what was seen of worlds, so it is in what was made of it"


def _summary(task: Task, verdicts: list[Verdict]) -> str:
    failed = sum(bool(one.problems) for one in verdicts)
    strange = sum(not one.same for one in verdicts)
    good = sum(one.ok for one in verdicts)
    counts = f"{good} ok" + (f", {failed} failed" if failed else "") + (f", {strange} differed" if strange else "")
    return f"{task.scenario.name} ({task.how.stack}): {len(verdicts)} seeds, each in two processes: {counts}"


def _print_json(task: Task, verdicts: list[Verdict], failures: list[_Failure]) -> None:
    by_seed = {one.verdict.seed: one for one in failures}
    for verdict in verdicts:
        found: dict[str, object] = {"seed": verdict.seed, "trace_hash": verdict.one.trace_hash, "ok": verdict.ok}
        if verdict.seed in by_seed:
            failure = by_seed[verdict.seed]
            found |= {"problems": verdict.problems, "same": verdict.same, "repeat": failure.repeat}
            found |= {"shrunk": failure.shrunk, "difference": failure.difference}
        print(line(found))
    last = {"scenario": task.scenario.name, "stack": task.how.stack, "seeds": len(verdicts)}
    print(line(last | {"ok": not failures, "failed": sorted(by_seed)}))
    sys.stdout.flush()
