"""An outcome that has one of everything, for tests of what is done with outcomes."""

from __future__ import annotations

import math

from sim.results import Outcome, Plot, Series, Table, gate
from sim.store import Played

EVERYTHING = Outcome(
    tables=(
        Table(
            "Steps/s <by> network",
            ("network", "paper", "ours", "ratio"),
            (("1 Gbit/s, 5 ms", 1.71, 1.7101, 1.0001), ("100 Mbit/s & 100 ms", None, math.inf, None)),
            "relay, 16 bit",
        ),
        Table("Steps/s (by) network", ("n",), ((123456.7,), (3,))),
    ),
    plots=(
        Plot("Lines", "prompt", "steps/s", (Series("ours", (1.0, 2.0), (1.0, None)), Series("paper", (1.0,), (2.0,)))),
        Plot("Bars", "net", "rate", (Series("ours", ("a", "b"), (1.0, 2.0)), Series("paper", ("b",), (2.0,))), "bar"),
        Plot("Steps", "t", "n", (Series("", (1.0, 10.0), (1.0, math.inf)),), "step", log_x=True, log_y=True),
    ),
    gates=(
        gate("seen cell", 1.0, 1.71, 0.05, "S"),
        gate("recalled cell", 1.0, 9.0, 0.05, "R"),
        gate("dash, s", math.inf, 3600.0, 0.0, "S", "at least"),
    ),
    results=({"network": "a", "steps_per_s": 1.5}, {"network": "b", "steps_per_s": math.inf}),
    notes=("calibrated on 1.71",),
    trace_hash="0123456789abcdef",
    violations=("lost a <token>",),
    faults=("crash@1=s0",),
)  # fmt: skip

PLAYED = Played(
    scenario="everything", about="one of <everything>", kind="none", seed=3, stack="ports", quick=False,
    repeat="python -m sim run everything --seed 3", outcome=EVERYTHING,
)  # fmt: skip
