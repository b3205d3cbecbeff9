"""``python -m sim side``: one of the two processes of ``check``; plays seeds, and tells of each in a line of JSON."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from sim import catalog, check
from sim.kinds import Run
from sim.play import stack_of
from sim.store import line


def run(args: argparse.Namespace) -> int:
    """Play every seed in the order given."""
    scenario = catalog.scenario(args.scenario)
    stack = stack_of(scenario, args.stack)
    for seed in args.seeds:
        how = Run(seed, stack, quick=args.quick, processes=1)
        record = args.record
        found = check.told(scenario, how) if record is None else check.recorded(scenario, how, Path(record))
        print(line(asdict(found)), flush=True)
    return 0
