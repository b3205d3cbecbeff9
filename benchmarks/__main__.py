"""Run every benchmark, each in a process of its own, JSON to benchmarks/results/; exits with 1 when one failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ALL = ("codec", "blocks", "hop_transport", "routing", "swarm", "failover", "activations", "footprint", "simulator")


def main() -> int:
    """Run what the command line names, or everything."""
    chosen = sys.argv[1:] or list(ALL)
    unknown = sorted(set(chosen) - set(ALL))
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    failed = []
    for name in chosen:
        print(f"\n== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(results / f"{name}.json")]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
