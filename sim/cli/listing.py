"""``python -m sim list``: scenarios, one line each."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rich.table import Table as Grid

from sim.catalog import head, locate, names
from sim.show import console
from sim.store import line


def run(args: argparse.Namespace) -> int:
    """Print the catalogue."""
    found = {name: head(locate(name))[0] for name in names()}
    if args.json:
        for name, one in found.items():
            print(line({"scenario": name, **asdict(one)}))
        return 0
    grid = Grid(box=None, pad_edge=False, header_style="bold")
    grid.add_column("scenario", no_wrap=True)
    grid.add_column("kind", no_wrap=True)
    grid.add_column("minutes", justify="right")
    grid.add_column("about")
    for name, one in found.items():
        grid.add_row(name, one.kind, f"{one.minutes:g}", one.about)
    console().print(grid)
    return 0
