"""``python -m sim all``: every scenario, then the report, then what each took."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trio

from sim import batch, catalog, show
from sim.batch import Batch, Done
from sim.cli.progress import bar
from sim.cli.reporting import published


def run(args: argparse.Namespace) -> int:
    """Play and report; 1 when anything failed."""
    scenarios = tuple(catalog.scenario(name) for name in args.only or catalog.names())
    todo = Batch(scenarios, Path(args.out), args.seed, args.quick, args.processes, batch.COMMAND)
    done: list[Done] = []

    async def play() -> float:
        began = trio.current_time()
        with bar("all") as progress:

            def hear(one: Done) -> None:
                done.append(one)
                progress(one.name, len(done), len(scenarios))
                print(f"{one.name}: {one.end}, {one.took_s:.1f} s", file=sys.stderr)

            progress("", 0, len(scenarios))
            await batch.play_all(todo, hear)
        return trio.current_time() - began

    whole_s = trio.run(play)
    batch.remember(todo.out, done)
    paths = published(todo.out, args.markdown)
    show.console().print(show.grid(batch.time_table(done, whole_s)))
    print(*paths, sep="\n")
    return 1 if any(one.code for one in done) else 0
