"""``python -m sim report``: one HTML page of a folder of results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from p2pllm.errors import UserError
from sim import plots
from sim.report import report
from sim.results import Plot


def run(args: argparse.Namespace) -> int:
    """Write the page; its path goes to stdout."""
    for path in report(Path(args.folder), draw=can_draw()):
        print(path)
    return 0


def can_draw() -> bool:
    """Whether matplotlib is there; says so where it is not, and the page then has its tables only."""
    try:
        plots.png(Plot("", "", "", ()))
    except UserError as error:
        print(f"sim: {error}", file=sys.stderr)
        return False
    return True
