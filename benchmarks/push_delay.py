"""Pushes against client-relayed hops on real sockets: a 3-hop chain with the same delay between all parties.

Needs root and Linux: ``sim.netlab`` emulates links between network namespaces. Pushed, a step crosses the network once
more than there are hops; relayed, twice for each. Compute and everything else is what the same commands take in the
same namespaces without delay.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, save, show
from sim.netlab import Lab
from sim.netlab.doctor import missing

ROOT = Path(__file__).parent.parent
SPANS = ("0:3", "3:5", "5:8")
READY_S = 120.0


def hosts(delay_ms: float) -> dict[str, Any]:
    """Five public hosts; each adds half of the one-way delay."""
    names = ("boot", "a", "b", "c", "client")
    return {"hosts": [{"name": name, "delay_ms": delay_ms / 2} for name in names]}


def command(*arguments: str) -> list[str]:
    """A p2pllm command as a process."""
    return [sys.executable, "-m", "p2pllm", *arguments, "--threads", "1"]


def wait_for(file: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What a server wrote once it serves."""
    deadline = time.monotonic() + READY_S
    while not file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"a server did not start; see {file.with_suffix('.log')}")
        time.sleep(0.1)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@contextmanager
def swarm(lab: Lab, folder: Path) -> Iterator[str]:
    """Bootstrap and three servers, each in its own namespace; gives the bootstrap address."""
    processes = []

    def start(host: str, *arguments: str) -> dict[str, Any]:
        ready = folder / f"{host}.json"
        flags = [
            "--listen",
            f"/ip4/{lab.addr(host)}/tcp/4001",
            "--ready-file",
            str(ready),
            "--cache-dir",
            str(folder / host),
        ]
        with ready.with_suffix(".log").open("wb") as log:
            process = lab.popen(host, command(*arguments, *flags), cwd=ROOT, stdout=log, stderr=log)
        processes.append(process)
        return wait_for(ready, process)

    try:
        addr = start("boot", "bootstrap")["addrs"][0]
        for host, span in zip("abc", SPANS, strict=True):
            start(host, "node", "demo", "--blocks", span, "--bootstrap", addr)
        yield addr
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def step_ms(lab: Lab, folder: Path, addr: str, push: str, steps: int) -> float:
    """The median step of a client in its own namespace."""
    flags = ["--bootstrap", addr, "--push", push, "--steps", str(steps), "--seq-len", "16", "--json"]
    code, out = lab.run(
        "client", command("bench", "inference", "demo", *flags, "--cache-dir", str(folder / "client")), cwd=ROOT
    )
    if code:
        sys.exit(f"the client failed: {out}")
    return float(json.loads(out.splitlines()[-1])["p50_ms"])


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--delay-ms", type=float, default=50.0, help="one way, between any two parties")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    if lacking := missing():
        sys.exit(f"emulated links are missing on this machine: {', '.join(lacking)}")
    found: dict[str, dict[float, float]] = {"on": {}, "off": {}}
    for delay_ms in (0.0, args.delay_ms):
        with tempfile.TemporaryDirectory() as name, Lab(hosts(delay_ms)) as lab, swarm(lab, Path(name)) as addr:
            for push in found:
                found[push][delay_ms] = step_ms(lab, Path(name), addr, push, args.steps)
    rows = []
    for push, crossings in (("on", len(SPANS) + 1), ("off", 2 * len(SPANS))):
        base, delayed = found[push][0.0], found[push][args.delay_ms]
        bound = base + crossings * args.delay_ms
        rows.append(
            {
                "mode": "pushed" if push == "on" else "relayed",
                "crossings": crossings,
                "no delay, ms": base,
                "delays + compute, ms": bound,
                "measured, ms": delayed,
                "steps/s": 1e3 / delayed,
                "over the bound, %": 100 * (delayed / bound - 1),
            }
        )
    show(f"3 hops, {args.delay_ms:g} ms one way between all parties, real sockets (limit: 5 % over)", rows)
    save(args.out, {"delay_ms": args.delay_ms, "rows": rows})


if __name__ == "__main__":
    main()
