"""``python -m sim report``: one HTML page of a folder of results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from p2pllm.errors import UserError
from sim import markdown, plots
from sim.report import report
from sim.results import Plot
from sim.store import load_all


def run(args: argparse.Namespace) -> int:
    """Write the page; paths go to stdout."""
    for path in published(Path(args.folder), args.markdown):
        print(path)
    return 0


def published(folder: Path, document: str | None) -> list[Path]:
    """The page of a folder, and the same as Markdown where that is wanted."""
    draw = can_draw()
    paths = report(folder, draw=draw)
    if document is not None:
        paths.append(markdown.publish(Path(document), load_all(folder), draw=draw)[0])
    return paths


def can_draw() -> bool:
    """Whether matplotlib is there; says so where it is not, and the page then has its tables only."""
    try:
        plots.png(Plot("", "", "", ()))
    except UserError as error:
        print(f"sim: {error}", file=sys.stderr)
        return False
    return True
