"""``python -m sim run``: play one scenario, print what came of it, write it down."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from p2pllm.errors import UserError
from sim import catalog, plots, show, store
from sim.cli.progress import bar
from sim.kinds import Run
from sim.play import play, stack_of
from sim.store import Played


def run(args: argparse.Namespace) -> int:
    """Play; 1 when a gate failed or a promise was broken."""
    scenario = catalog.scenario(args.scenario)
    stack = stack_of(scenario, args.stack)
    with bar(scenario.name) as progress:
        how = Run(args.seed, stack, progress, faults_of(args.faults), args.quick, args.processes)
        played = play(scenario, how)
    tell(played, json=args.json)
    if args.out is not None:
        for path in written(Path(args.out), store.stem(played, scenario.kind.stacks[0]), played):
            print(path, file=sys.stderr)
    return 0 if played.outcome.ok else 1


def faults_of(text: str | None) -> tuple[str, ...] | None:
    """Faults of ``--faults``: separated by spaces or commas; an empty text is no fault at all."""
    return None if text is None else tuple(text.replace(",", " ").split())


def tell(played: Played, *, json: bool) -> None:
    """Print an outcome to stdout, and what ended it early to stderr."""
    if played.skipped:
        print(f"sim: {played.scenario} was skipped: {played.skipped}", file=sys.stderr)
    outcome = played.outcome
    if not json:
        if not played.skipped:
            show.show(
                f"{played.scenario} (seed {played.seed}, {played.stack}): {played.about}", outcome, show.console()
            )
        return
    for result in outcome.results:
        print(store.line(result))
    print(store.line(last_line(played)))


def last_line(played: Played) -> dict[str, object]:
    """What ``--json`` ends with."""
    outcome = played.outcome
    found: dict[str, object] = {
        "scenario": played.scenario,
        "seed": played.seed,
        "stack": played.stack,
        "trace_hash": outcome.trace_hash,
        "results": list(outcome.results),
        "ok": outcome.ok,
        "failed_gates": [gate.name for gate in outcome.gates if gate.failed],
        "violations": list(outcome.violations),
        "faults": list(outcome.faults),
        "repeat": played.repeat,
    }
    return found | ({"skipped": played.skipped} if played.skipped else {})


def written(folder: Path, name: str, played: Played) -> list[Path]:
    """Write JSON, CSV and, where matplotlib is there, PNG; returns the paths."""
    paths = store.save(folder, name, played)
    drawn = zip(store.plot_paths(folder, name, played.outcome), played.outcome.plots, strict=True)
    for path, plot in drawn:
        try:
            picture = plots.png(plot)
        except UserError as error:
            print(f"sim: {error}", file=sys.stderr)
            break
        store.write(path, picture)
        paths.append(path)
    return paths
