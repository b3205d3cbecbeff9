"""``python -m sim keys``: what may stand in a scenario, kind by kind."""

from __future__ import annotations

import argparse
from pathlib import Path

from sim import keys, show
from sim.catalog import Head


def run(args: argparse.Namespace) -> int:
    """Print the reference, or renew it in a document."""
    if args.update is not None:
        changed = keys.update(Path(args.update))
        print(f"{args.update}: {'renewed' if changed else 'current'}")
        return 0
    found = keys.kinds([args.kind] if args.kind else [])
    out = show.console()
    out.print(show.grid(keys.table(Head, "in every scenario")), "")
    for kind in found:
        out.print(show.grid(keys.table(kind.params, f'kind = "{kind.name}": {kind.about}')), "")
    for cls in keys.tables(kind.params for kind in found):
        out.print(show.grid(keys.table(cls, f"table {cls.__name__}")), "")
    return 0
