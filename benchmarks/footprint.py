"""What p2pllm costs before it does anything: time to --help, what imports load, a server's memory and processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import trio

from benchmarks.common import arguments, save, show, spread
from p2pllm.node.local_swarm import Member, open_local_swarm

HEAVY = ("torch", "libp2p", "transformers", "numpy")


def wall(command: list[str], runs: int) -> dict[str, float]:
    """Wall seconds of a whole process."""
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - begun)
    return spread(seconds)


def loaded(module: str) -> list[str]:
    """Which heavy packages importing ``module`` loads."""
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


def resident_mib(pid: int) -> float:
    """A process's resident memory, from the kernel."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def processes(pid: int) -> int:
    """A process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return 1 + sum(processes(int(child)) for child in children)


async def server() -> dict[str, float]:
    """A node that serves the whole demo model: its memory includes 5 MB of weights and its (untouched) cache."""
    found: dict[str, float] = {}

    def look(member: Member) -> None:
        if member.span is not None:
            found["resident_mib"] = resident_mib(member.process.pid)
            found["processes"] = processes(member.process.pid)

    async with open_local_swarm("demo", [(0, 8)], on_ready=look):
        return found


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    help_s = wall([sys.executable, "-m", "p2pllm", "--help"], args.runs)
    python_s = wall([sys.executable, "-c", "pass"], args.runs)
    imports = {m: loaded(m) for m in ("p2pllm.wire", "p2pllm.wire.tensor", "p2pllm.cli.main")}
    node = trio.run(server)
    rows = [
        {"what": "p2pllm --help, s (limit 0.5)", "measured": help_s["p50"], "baseline": python_s["p50"]},
        {"what": "server resident, MiB (limit 400)", "measured": node["resident_mib"], "baseline": "-"},
        {"what": "server processes (limit 1)", "measured": node["processes"], "baseline": "-"},
        *(
            {"what": f"import {m} loads", "measured": ", ".join(v) or "none", "baseline": "-"}
            for m, v in imports.items()
        ),
    ]
    show("Footprint (baseline: an empty Python process)", rows)
    save(args.out, {"help_s": help_s, "python_s": python_s, "imports": imports, "server": node})


if __name__ == "__main__":
    main()
